// Mixed traffic without an end: `node load.ts HOST PORT SEED`. Every byte that comes back is compared. By standard
// input: `count` tells what was done, `stop` lets what is under way end, tells that and ends.
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { pause } from '#shared/lifecycle.ts'
import { answer, nextCommand } from '../bench/load/lines.ts'
import { echoOnce, exchange, open, type Target } from '../conformance/exchange.ts'
import { readLine, receiveAll, SeededBytes, sendSeeded } from '../conformance/traffic.ts'

const [host = '', port = '', seed = ''] = process.argv.slice(2)
const target: Target = { host, port: Number(port) }
const random = new SeededBytes(Number(seed))
const below = (limit: number) => random.block(4).readUInt32LE() % limit
const stopping = new AbortController()
/** A keep-alive connection has so many exchanges. */
const exchangesPerConnection = 200
const silentMs = 30_000
const mostTold = 20

interface Lane {
  /** How many at once, and about how long each rests in between, in ms. */
  width: number
  restMs: number
  run(): Promise<void>
}

const seeds = () => below(1_000_000) + 1
const sizes = (limit: number) => ({
  seed: seeds(),
  up: below(limit),
  down: below(limit),
  breakAfter: below(limit),
})

async function check(kind: 'both' | 'break-here' | 'break-there', limit: number): Promise<void> {
  await exchange(target, { kind, ...sizes(limit) })
}

async function must(what: Promise<boolean>): Promise<void> {
  if (!(await what)) throw new Error('wrong bytes came back')
}

/** One connection that talks for some seconds. */
async function keepAlive(): Promise<void> {
  const socket = await open(target, 'echo')
  const bytes = new SeededBytes(seeds())
  for (let i = 0; i < exchangesPerConnection && !stopping.signal.aborted; i++) {
    const sent = bytes.block(1 + below(4_000))
    socket.write(sent)
    await expectBytes(socket, sent)
    await pause(20, stopping.signal)
  }
  socket.end()
  if ((await receiveAll(socket)).by !== 'end') throw new Error('no FIN came back')
  socket.destroy()
}

/** Reads so many bytes, and throws where they are others, or none come. */
async function expectBytes(socket: Socket, expected: Buffer): Promise<void> {
  for (let left = expected; left.length > 0; ) {
    const chunk: Buffer | null = socket.read()
    if (chunk !== null && !left.subarray(0, chunk.length).equals(chunk))
      throw new Error('wrong bytes came back')
    if (chunk !== null) left = left.subarray(chunk.length)
    else if (socket.readableEnded || socket.destroyed) throw new Error('it ended early')
    else await once(socket, 'readable', { signal: AbortSignal.timeout(silentMs) })
  }
}

/** The client's FIN first: the server's answer comes after it. */
async function halfClose(): Promise<void> {
  const socket = await open(target, 'sink')
  const total = below(300_000)
  const sha256 = await sendSeeded(socket, total, seeds())
  socket.end()
  const line = await readLine(socket)
  if (line !== `${total} ${sha256}`) throw new Error(`the server has received ${line}`)
  socket.destroy()
}

const lanes: Record<string, Lane> = {
  new: { width: 2, restMs: 50, run: () => must(echoOnce(target, seeds())) },
  'keep-alive': { width: 4, restMs: 100, run: keepAlive },
  bulk: { width: 1, restMs: 2_000, run: () => check('both', 40_000_000) },
  both: { width: 2, restMs: 400, run: () => check('both', 3_000_000) },
  'break-here': { width: 1, restMs: 400, run: () => check('break-here', 3_000_000) },
  'break-there': { width: 1, restMs: 400, run: () => check('break-there', 3_000_000) },
  'half-close': { width: 1, restMs: 200, run: halfClose },
}

const good: Record<string, number> = {}
const failures: string[] = []
let failed = 0

async function go(name: string, { restMs, run }: Lane): Promise<void> {
  while (!stopping.signal.aborted) {
    try {
      await run()
      good[name] = (good[name] ?? 0) + 1
    } catch (error) {
      failed++
      if (failures.length < mostTold) failures.push(`${new Date().toISOString()} ${name}: ${error}`)
    }
    await pause(restMs / 2 + below(restMs), stopping.signal)
  }
}

const running = Object.entries(lanes).flatMap(([name, lane]) =>
  Array.from({ length: lane.width }, () => go(name, lane)),
)
const alive = setInterval(() => undefined, 1_000) // pauses do not keep a process alive
for (;;) {
  const command = await nextCommand<'count' | 'stop'>()
  if (command !== 'count') break
  answer({ good, failed, failures })
}
stopping.abort()
await Promise.all(running)
answer({ good, failed, failures })
clearInterval(alive)
process.exit(0)
