import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { mustRun, run } from '../../lab/shell.ts'

const name = `emx-${randomBytes(3).toString('hex')}`
const inside = (argv: string[]) => ['nsenter', `--net=/run/netns/${name}`, '--', ...argv]

beforeAll(async () => {
  await mustRun(['ip', 'netns', 'add', name])
  const commands = [
    'link set lo up',
    'addr add 10.9.0.1/32 dev lo',
    'addr add fd00:9::1/128 dev lo nodad',
    'route add default dev lo',
    '-6 route add default dev lo',
  ]
  for (const command of commands) await mustRun(['ip', '-n', name, ...command.split(' ')])
  const redirect = ['-t', 'nat', '-A', 'OUTPUT', '-p', 'tcp', '-j', 'REDIRECT', '--to-ports', '40001', '-d']
  await mustRun(inside(['iptables-nft', ...redirect, '10.96.0.0/16']))
  await mustRun(inside(['ip6tables-nft', ...redirect, 'fd00:10:96::/112']))
})

afterAll(() => run(['ip', 'netns', 'del', name]))

it('a worker that dies resets what it carried, the main thread accepts until there is another, and nothing leaks', async () => {
  const script = `${import.meta.dirname}/in-namespace.ts`
  const { stdout, stderr } = await run(inside([process.execPath, script]), { timeoutMs: 60_000 })
  expect(stderr).toBe('')
  expect(JSON.parse(stdout)).toEqual({
    first: ['hello', 'hello'],
    open: 1,
    broken: { held: 'reset', next: 'over' },
    byMain: ['hello', 'hello'],
    fewer: true,
    again: ['hello'],
    workers: 2,
    died: ['the pump died, and its connections with it', 'connections died with the pump'],
    closed: 'reset',
  })
})

it('a worker that dies takes its lanes with it, and nothing else, and others are made', async () => {
  const script = `${import.meta.dirname}/lanes-in-namespace.ts`
  const folder = mkdtempSync(join(tmpdir(), 'lanes-'))
  const { stdout, stderr } = await run(inside([process.execPath, script, folder]), { timeoutMs: 90_000 })
  rmSync(folder, { recursive: true })
  expect(stderr).toBe('')
  expect(JSON.parse(stdout)).toEqual({
    opened: { near: 2, far: 1, lanes: 1 },
    farDied: ['reset', 'lives'],
    again: ['lives', 'lives'],
    nearDied: ['reset', 'reset'],
    lanesLeft: 0,
    after: 'lives',
    workers: 4,
  })
}, 100_000)
