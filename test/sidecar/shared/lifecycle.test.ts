import { describe, expect, it } from 'vitest'
import { fullJitter, Lifecycle, pause, withDeadline } from '../../../sidecar/shared/lifecycle.ts'
import { createLogger } from '../../../sidecar/shared/log.ts'

function lifecycleWithLog(): {
  lifecycle: Lifecycle
  lines: { msg: string; stopping: string; error: string }[]
} {
  const lines: { msg: string; stopping: string; error: string }[] = []
  const log = createLogger('test', 'trace', { write: (line) => void lines.push(JSON.parse(line)) })
  return { lifecycle: new Lifecycle(log), lines }
}

const never = () => Promise.withResolvers<never>().promise

describe('a lifecycle', () => {
  it('stops its parts one after the other, the last started first', async () => {
    const { lifecycle, lines } = lifecycleWithLog()
    const steps: string[] = []
    for (const name of ['first', 'second', 'third']) {
      lifecycle.add(name, async () => {
        steps.push(`${name} begins`)
        await pause(1)
        steps.push(`${name} ends`)
      })
    }
    await lifecycle.stop()
    expect(steps).toEqual(['third', 'second', 'first'].flatMap((n) => [`${n} begins`, `${n} ends`]))
    expect(lines).toEqual([])
  })

  it('aborts its signal before it stops anything', async () => {
    const { lifecycle } = lifecycleWithLog()
    let aborted = false
    lifecycle.add('part', () => {
      aborted = lifecycle.signal.aborted
    })
    expect(lifecycle.signal.aborted).toBe(false)
    await lifecycle.stop()
    expect(aborted).toBe(true)
    expect(lifecycle.signal.reason).toMatchObject({ code: 'stopping' })
  })

  it.each([
    [
      'throws',
      () => {
        throw new Error('broken')
      },
      'broken',
    ],
    ['rejects', () => Promise.reject(new Error('broken later')), 'broken later'],
    ['hangs', never, 'Cannot stop bad: no answer within 20 ms.'],
  ])('goes on when a part %s, and says so', async (_how, stop, error) => {
    const { lifecycle, lines } = lifecycleWithLog()
    let stopped = false
    lifecycle.add('good', () => {
      stopped = true
    })
    lifecycle.add('bad', stop, 20)
    await lifecycle.stop()
    expect(stopped).toBe(true)
    expect(lines).toMatchObject([{ stopping: 'bad', error }])
  })

  it('stops once, however often it is told to', async () => {
    const { lifecycle } = lifecycleWithLog()
    let stops = 0
    lifecycle.add('part', () => {
      stops++
    })
    await Promise.all([lifecycle.stop(), lifecycle.stop()])
    await lifecycle.stop()
    expect(stops).toBe(1)
  })
})

describe('a deadline', () => {
  it('lets a timely value through', async () => {
    expect(await withDeadline(Promise.resolve(7), 10_000, 'count')).toBe(7)
  })

  it('lets a timely failure through', async () => {
    const failure = new Error('no')
    await expect(withDeadline(Promise.reject(failure), 10_000, 'count')).rejects.toBe(failure)
  })

  it('says what was late', async () => {
    await expect(withDeadline(never(), 5, 'count the sheep')).rejects.toMatchObject({
      code: 'timeout',
      message: 'Cannot count the sheep: no answer within 5 ms.',
    })
  })
})

describe('a pause', () => {
  it('ends by itself', async () => {
    await pause(1)
  })

  it('ends at once where the signal is aborted already', async () => {
    await pause(2 ** 30, AbortSignal.abort())
  })

  it('ends without error when the signal aborts', async () => {
    const aborter = new AbortController()
    const pausing = pause(2 ** 30, aborter.signal)
    aborter.abort()
    await expect(pausing).resolves.toBeUndefined()
  })
})

describe('full jitter', () => {
  it.each([
    [0, 100],
    [1, 200],
    [3, 800],
    [4, 1_000],
    [50, 1_000],
    [5_000, 1_000],
  ])('at attempt %i waits at most %i ms', (attempt, most) => {
    expect(fullJitter(attempt, 100, 1_000, () => 1)).toBe(most)
    expect(fullJitter(attempt, 100, 1_000, () => 0.5)).toBe(most / 2)
    expect(fullJitter(attempt, 100, 1_000, () => 0)).toBe(0)
  })

  it('is random by itself', () => {
    const delays = Array.from({ length: 100 }, () => fullJitter(3, 100, 1_000))
    expect(new Set(delays).size).toBeGreaterThan(50)
    expect(delays.every((ms) => ms >= 0 && ms < 800)).toBe(true)
  })
})
