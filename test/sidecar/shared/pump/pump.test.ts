import { readdirSync } from 'node:fs'
import type { Worker } from 'node:worker_threads'
import koffi from 'koffi'
import { type Logger, pino } from 'pino'
import { afterEach, expect, it, vi } from 'vitest'
import { descriptorOf } from '../../../../sidecar/shared/descriptor.ts'
import { joinByPump } from '../../../../sidecar/shared/pump/join.ts'
import { send } from '../../../../sidecar/shared/pump/libc.ts'
import { Pump } from '../../../../sidecar/shared/pump/pump.ts'
import { spliceSockets } from '../../../../sidecar/shared/splice.ts'
import { SeededBytes } from '../../../conformance/traffic.ts'
import { receive, tcpPair } from '../tcp.ts'

const lines: { level: number; msg: string }[] = []
const log = pino({ level: 'trace' }, { write: (line: string) => lines.push(JSON.parse(line)) }) as Logger
const workers: Worker[] = []
const onWorker = (worker: Worker) => workers.push(worker)
process.on('worker', onWorker)
const pumps: Pump[] = []
const MSG_OOB = 1
const patient = { timeout: 60_000 }

afterEach(async () => {
  for (const pump of pumps.splice(0)) await pump.close()
  lines.length = 0
  workers.length = 0
})

function makePump(maxConnections?: number): Pump {
  const pump = new Pump(log, maxConnections)
  pumps.push(pump)
  return pump
}

/** A splice of two TCP connections that goes to the pump at its first byte, where there is one. */
async function splice(pump?: Pump) {
  const [[left, a], [right, b]] = await Promise.all([tcpPair(), tcpPair()])
  const onBulk = (splice: Parameters<typeof joinByPump>[0]) => void joinByPump(splice, pump ?? makePump())
  return { left, right, done: spliceSockets(a, b, pump === undefined ? {} : { onBulk, bulkBytes: 1 }) }
}

async function carries({
  left,
  right,
}: {
  left: Awaited<ReturnType<typeof tcpPair>>[0]
  right: typeof left
}) {
  const bytes = new SeededBytes(3).block(700_001)
  left.end(bytes)
  right.end()
  const { bytes: received, by } = await receive(right)
  return by === 'fin' && received.equals(bytes)
}

/** Writes until the pump has the connection. */
async function intoPump(
  pump: Pump,
  spliced: { left: Awaited<ReturnType<typeof tcpPair>>[0] },
): Promise<void> {
  const before = pump.use.connections
  await vi.waitFor(() => {
    spliced.left.write('more ')
    expect(pump.use.connections).toBe(before + 1)
  }, patient)
}

it('a worker that dies takes only its own connections, and is replaced', async () => {
  const pump = makePump()
  const [inside, outside] = [await splice(pump), await splice()]
  inside.right.resume()
  await intoPump(pump, inside)
  const dying = workers[0]
  void dying?.terminate()
  inside.left.write('wakes the worker up, to die')
  expect(await inside.done).toMatchObject({ reason: 'reset' })
  expect(await carries(outside)).toBe(true)
  expect(lines.filter((l) => l.level >= 40)).toEqual([
    expect.objectContaining({ msg: 'the pump died, and its connections with it', connections: 1 }),
  ])
  // Not at once: what killed one may kill the next.
  expect(pump.available).toBe(false)
  expect(await carries(await splice(pump))).toBe(true)
  await vi.waitFor(() => expect(pump.available).toBe(true), patient)
  const again = await splice(pump)
  again.right.resume()
  await intoPump(pump, again)
  expect(workers).toHaveLength(2)
  again.left.destroy()
})

it('where the worker cannot start, bulk stays in JavaScript, and that is said once', async () => {
  const pump = makePump()
  process.once('worker', (worker) => void worker.terminate())
  const first = await splice(pump)
  expect(await carries(first)).toBe(true)
  expect((await first.done).reason).toBe('closed')
  await vi.waitFor(() => expect(pump.available).toBe(false), patient)
  for (let i = 0; i < 3; i++) expect(await carries(await splice(pump))).toBe(true)
  expect(workers).toHaveLength(1)
  expect(lines.map((l) => l.msg)).toEqual(['no pump here: bulk is carried in JavaScript'])
})

it('where the kernel gives no more descriptors, bulk stays in JavaScript, and that is said once', async () => {
  const pump = makePump()
  const [first, second] = [await splice(pump), await splice(pump)]
  const limited = withDescriptors(openDescriptors())
  try {
    expect(await pump.ready()).toBe(false)
    expect([await carries(first), await carries(second)]).toEqual([true, true])
  } finally {
    limited.restore()
  }
  expect(lines.map((l) => l.msg)).toEqual(['no pump here: bulk is carried in JavaScript'])
})

it('takes no more connections than it may, and gives every descriptor back', async () => {
  const pump = makePump(1)
  const before = openDescriptors()
  const [one, two] = [await splice(pump), await splice(pump)]
  one.right.resume()
  await intoPump(pump, one)
  expect(await carries(two)).toBe(true)
  expect(pump.use.connections).toBe(1)
  one.left.end()
  one.right.end()
  expect((await one.done).reason).toBe('closed')
  expect(pump.use.connections).toBe(0)
  await pump.close()
  await vi.waitFor(() => expect(openDescriptors()).toBeLessThanOrEqual(before), patient)
})

it('urgent data is lost, as for an app that does not ask for it, and does not stop what comes after it', async () => {
  const pump = makePump()
  const inside = await splice(pump)
  const received = receive(inside.right)
  await intoPump(pump, inside)
  const fd = descriptorOf(inside.left) ?? -1
  send(fd, Buffer.from('!'), 1, MSG_OOB)
  inside.left.end('after it')
  inside.right.end()
  const { bytes, by } = await received
  expect({ by, end: bytes.subarray(-8).toString() }).toEqual({ by: 'fin', end: 'after it' })
  expect((await inside.done).reason).toBe('closed')
})

function openDescriptors(): number {
  return readdirSync('/proc/self/fd').length
}

const libc = koffi.load(null)
const limitOf = libc.func('int getrlimit(int resource, _Out_ uint64_t *limit)')
const setLimit = libc.func('int setrlimit(int resource, const uint64_t *limit)')
const RLIMIT_NOFILE = 7

/** Lets this process open no descriptor beyond the number. */
function withDescriptors(count: number): { restore: () => void } {
  const before = [0, 0]
  limitOf(RLIMIT_NOFILE, before)
  setLimit(RLIMIT_NOFILE, [count - 1, before[1]])
  return { restore: () => setLimit(RLIMIT_NOFILE, before) }
}
