import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { Attempts } from '../../../sidecar/routing/attempts.ts'
import type { Choice } from '../../../sidecar/services/balancer.ts'
import { EndpointHealth, healthKey } from '../../../sidecar/services/health.ts'
import { EdgeMeshError, type ErrorCode } from '../../../sidecar/shared/errors.ts'

type Behaviour = 'ok' | 'silent' | 'mute' | ErrorCode

/**
 * Endpoints by name: `ok` connects, a code fails to be reached with it, `silent` never has a session, `mute` has one
 * but does not answer its stream.
 */
function run(endpoints: Record<string, Behaviour>, budget: () => number = () => 0) {
  const aborter = new AbortController()
  const said: string[] = []
  const health = new EndpointHealth()
  const never = new Promise<never>(() => undefined)
  const behaviour = (choice: Choice) => endpoints[choice.key]
  const attempts = new Attempts<string>(
    {
      service: 'default/web',
      next: async (tried) => {
        const key = Object.keys(endpoints).find((k) => !tried.has(k))
        if (key === undefined) return undefined
        const endpoint = { addresses: ['10.244.1.2'], ready: true, serving: true, terminating: false }
        return {
          endpoint: { ...endpoint, ports: {}, sidecar: true },
          ...{ address: '10.244.1.2', port: 80, key, healthKey: healthKey(key, 80), ejected: false },
        }
      },
      reach: (choice) => {
        const how = behaviour(choice)
        if (how === 'silent') return never
        if (how === 'ok' || how === 'mute') return Promise.resolve()
        return Promise.reject(new EdgeMeshError(how ?? 'bad-config', 'Cannot reach it.'))
      },
      open: (choice) => {
        said.push(`open ${choice.key}`)
        return behaviour(choice) === 'mute' ? never : Promise.resolve(choice.key)
      },
      discard: (late) => said.push(`discard ${late}`),
      onStart: (choice) => said.push(`start ${choice.key}`),
      onLost: (choice) => said.push(`lost ${choice.key}`),
      onEjected: (code) => said.push(`ejected: ${code}`),
      onRetry: (reason) => said.push(`retry: ${reason}`),
      budget,
      health,
    },
    aborter.signal,
  )
  const outcome = attempts.connect().then(
    ({ value }) => value,
    (error) => error.code,
  )
  return { outcome, said, aborter, health }
}

beforeEach(() => {
  vi.useFakeTimers()
})

afterEach(() => {
  vi.useRealTimers()
})

describe('one connection to a service', () => {
  it.each<[string, Record<string, Behaviour>, string, string[]]>([
    ['takes the first endpoint that connects', { a: 'ok', b: 'ok' }, 'a', ['start a', 'open a']],
    [
      'goes on to the next endpoints when one fails',
      { a: 'refused', b: 'unreachable', c: 'timeout', d: 'reset', e: 'ok' },
      'e',
      [
        ...['start a', 'ejected: refused', 'retry: refused', 'start b', 'ejected: unreachable'],
        ...[
          'retry: unreachable',
          'start c',
          'ejected: timeout',
          'retry: timeout',
          'start d',
          'ejected: reset',
        ],
        ...['retry: reset', 'start e', 'open e', 'lost a', 'lost b', 'lost c', 'lost d'],
      ],
    ],
    [
      'does not eject an endpoint for what is not its fault',
      { a: 'forbidden', b: 'ok' },
      'b',
      ['start a', 'retry: forbidden', 'start b', 'open b', 'lost a'],
    ],
    [
      'tries another beside one that has no session after its head start',
      { a: 'silent', b: 'ok' },
      'b',
      ['start a', 'retry: slow', 'start b', 'open b', 'lost a'],
    ],
    [
      'tries another beside one that does not answer its stream',
      { a: 'mute', b: 'ok' },
      'b',
      ['start a', 'open a', 'retry: slow', 'start b', 'open b', 'lost a'],
    ],
    [
      'fails with what happened last once none is left',
      { a: 'timeout', b: 'refused' },
      'refused',
      ['start a', 'ejected: timeout', 'retry: timeout', 'start b', 'ejected: refused', 'lost a', 'lost b'],
    ],
    ['fails where there is no endpoint', {}, 'no-endpoint', []],
  ])('%s', async (_title, endpoints, winner, story) => {
    const { outcome, said } = run(endpoints)
    await vi.runAllTimersAsync()
    expect(await outcome).toBe(winner)
    expect(said).toEqual(story)
  })

  it('keeps others off an endpoint that is slow', async () => {
    const { outcome, health } = run({ a: 'silent', b: 'ok' })
    await vi.runAllTimersAsync()
    expect(await outcome).toBe('b')
    expect(health.restsUntil(healthKey('a', 80))).toBeGreaterThan(0)
    expect(health.restsUntil(healthKey('b', 80))).toBeLessThan(0)
  })

  it('waits for its budget before it tries an endpoint that may be good', async () => {
    const waits = [500, 300]
    const { outcome, said } = run({ a: 'refused', b: 'ok' }, () => waits.shift() ?? 0)
    await vi.runAllTimersAsync()
    expect(await outcome).toBe('b')
    expect(waits).toEqual([])
    expect(said).toContain('retry: refused')
  })

  it('tries no other beside a slow one when the budget is spent', async () => {
    const { outcome, said, aborter } = run({ a: 'silent', b: 'ok' }, () => 500)
    await vi.advanceTimersByTimeAsync(5_000)
    aborter.abort(new EdgeMeshError('timeout', 'Cannot connect: too late.'))
    expect(await outcome).toBe('timeout')
    expect(said).toEqual(['start a', 'lost a'])
  })

  it('ends at once when the app gives up', async () => {
    const { outcome, aborter } = run({ a: 'mute' })
    await vi.advanceTimersByTimeAsync(1)
    aborter.abort(new EdgeMeshError('reset', 'Cannot go on: the app gave up.'))
    expect(await outcome).toBe('reset')
  })
})
