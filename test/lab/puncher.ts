// One end of a raw hole punch, in a pod: `node puncher.ts REFLECTOR_HOST REFLECTOR_PORT`. Connects to the reflector and
// prints {localPort, observed}; then takes one line {host, port, listens, seconds, paceMs, hurries} and prints
// {by, attempts, ms}: `by` is `dial` or `accept`, or null when it came to nothing. Each end sends a byte and needs one.
import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { setImmediate, setTimeout } from 'node:timers/promises'

interface Order {
  host: string
  port: number
  /** Dials once, so that the NATs know the peer, and then listens on the same port. */
  listens: boolean
  seconds: number
  /** From one dial to the next. */
  paceMs: number
  /** After a refusal the next dial follows at once. */
  hurries: boolean
}

const [reflectorHost = '', reflectorPort = ''] = process.argv.slice(2)
// A local address makes Node bind, with SO_REUSEADDR: only then may others share the port.
const local = { localAddress: '0.0.0.0', noDelay: true }
const reflector = connect({ host: reflectorHost, port: Number(reflectorPort), ...local })
const [observed] = await once(reflector, 'data')
const localPort = reflector.localPort ?? 0
console.log(JSON.stringify({ localPort, observed: String(observed) }))
const [line] = await once(createInterface({ input: process.stdin }), 'line')
const order = JSON.parse(line) as Order

/** Turns of the event loop, each some microseconds: about as far apart as two nodes of one LAN. */
const maxTurns = 128
const started = performance.now()
const deadline = started + order.seconds * 1_000
let attempts = 0
const outcomes: Record<string, number> = {}

/** Both ends must have heard each other. */
function greeted(socket: Socket): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  socket.on('error', () => resolve(false))
  socket.once('close', () => resolve(false))
  socket.once('data', () => resolve(true))
  socket.write('!')
  return promise
}

/** One dial: `connected` as soon as it is, else why not. */
function dial(timeoutMs: number): Promise<string> {
  attempts++
  const socket = connect({ host: order.host, port: order.port, localPort, ...local })
  const { promise, resolve } = Promise.withResolvers<string>()
  const timer = globalThis.setTimeout(() => resolve('timeout'), timeoutMs)
  socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? 'error'))
  socket.once('connect', () => {
    clearTimeout(timer)
    void greeted(socket).then((ok) => resolve(ok ? 'connected' : 'mute'))
  })
  return promise.finally(() => {
    clearTimeout(timer)
    socket.destroy()
  })
}

async function dialUntilDeadline(): Promise<string | undefined> {
  while (performance.now() < deadline) {
    const before = performance.now()
    const outcome = await dial(Math.min(order.paceMs * 3, deadline - before))
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
    if (outcome === 'connected') return 'dial'
    await pause(outcome === 'ECONNREFUSED', before)
  }
  return undefined
}

/** Refused: at once, some turns of the event loop later at most. Timers of whole milliseconds miss each other for long. */
async function pause(refused: boolean, before: number): Promise<void> {
  if (refused && order.hurries)
    for (let turns = Math.floor(Math.random() * maxTurns); turns > 0; turns--) await setImmediate()
  else await setTimeout(Math.max(0, order.paceMs - (performance.now() - before)))
}

async function dialThenListen(): Promise<string | undefined> {
  await dial(50)
  const { promise, resolve } = Promise.withResolvers<string | undefined>()
  const server = createServer((socket) => {
    void greeted(socket).then((ok) => {
      if (ok) resolve('accept')
    })
  })
  server.on('error', (error) => {
    process.stderr.write(`${error.message}\n`)
    resolve(undefined)
  })
  server.listen({ port: localPort, host: '0.0.0.0' })
  globalThis.setTimeout(() => resolve(undefined), deadline - performance.now())
  return promise
}

const by = order.listens ? await dialThenListen() : await dialUntilDeadline()
const ms = Math.round(performance.now() - started)
console.log(JSON.stringify({ by: by ?? null, attempts, ms, outcomes }))
await setTimeout(20) // the greeting goes out
process.exit(0)
