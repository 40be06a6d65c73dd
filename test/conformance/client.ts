// The client of the conformance suite: `node client.ts CASE HOST PORT [ARGS]`. Prints one JSON object.
import { connect, type Socket } from 'node:net'
import { echoOnce, exchange, open as openTo, type Target } from './exchange.ts'
import { readLine, receiveAll, SeededBytes, sendSeeded } from './traffic.ts'

const [name = '', host = '', port = '', ...args] = process.argv.slice(2)

const target: Target = { host, port: Number(port) }
const open = (line: string) => openTo(target, line)

const cases: Record<string, () => Promise<object>> = {
  async echo() {
    const socket = await open('echo')
    socket.write('one\n')
    const first = await readLine(socket)
    socket.resume()
    socket.end('two\n')
    const rest = await receiveAll(socket)
    return { first, rest: rest.bytes, by: rest.by }
  },
  /** The client's FIN first: the server's answer comes after it. */
  async 'client-fin-first'() {
    const socket = await open('sink')
    const sha256 = await sendSeeded(socket, 100_000, 1)
    socket.end()
    const answer = await readLine(socket)
    return { correct: answer === `100000 ${sha256}` }
  },
  /** The server's FIN first: what the client sends after it still arrives. */
  async 'server-fin-first'() {
    const socket = await open('fin-first')
    const received = await receiveAll(socket)
    await sendSeeded(socket, 100_000, 2)
    const { promise, resolve } = Promise.withResolvers<void>()
    socket.once('close', () => resolve())
    socket.end()
    await promise
    return { received: received.bytes, by: received.by }
  },
  async 'server-reset'() {
    const socket = await open('reset 1000')
    let got = 0
    socket.on('data', (chunk) => {
      got += chunk.length
      if (got === 1_000) socket.write('seen\n')
    })
    const received = await receiveAll(socket)
    return { bytes: received.bytes, by: received.by }
  },
  async 'client-reset'() {
    const socket = await open('await-reset 1000')
    await sendSeeded(socket, 1_000, 3)
    await readLine(socket) // a reset may overtake data, as in plain TCP
    socket.resetAndDestroy()
    return {}
  },
  async upload() {
    const socket = await open('sink')
    const sha256 = await sendSeeded(socket, Number(args[0]), 4)
    socket.end()
    const answer = await readLine(socket)
    return { correct: answer === `${args[0]} ${sha256}` }
  },
  async download() {
    const socket = await open(`source ${args[0]} 5`)
    const received = await receiveAll(socket)
    socket.end()
    return received
  },
  async concurrent() {
    const count = Number(args[0])
    const results = await Promise.allSettled(Array.from({ length: count }, (_, i) => echoOnce(target, i + 1)))
    return { correct: results.filter((r) => r.status === 'fulfilled' && r.value).length }
  },
  /** Sends to a reader that has stopped; says how much the path took in before it pushed back. */
  async 'slow-reader'() {
    const socket = await open('slow')
    const bytes = new SeededBytes(6)
    let taken = 0
    let lastProgress = Date.now()
    while (Date.now() - lastProgress < 2_000 && taken < 200_000_000) {
      const block = bytes.block()
      if (socket.write(block)) lastProgress = Date.now()
      else if (await drainedWithin(socket, 2_000)) lastProgress = Date.now()
      else break
      taken += block.length
    }
    socket.resetAndDestroy()
    return { taken }
  },
  /** Many connections of every kind, sizes and moments by a seed; every byte that comes is compared. */
  async stress() {
    const [seed = '', count = ''] = args
    const random = new SeededBytes(Number(seed))
    const below = (limit: number) => random.block(4).readUInt32LE() % limit
    const plans = Array.from({ length: Number(count) }, (_, i) => ({
      kind: (['both', 'both', 'break-here', 'break-there'] as const)[below(4)] ?? 'both',
      seed: i + 1,
      up: below(3_000_000),
      down: below(3_000_000),
      breakAfter: below(3_000_000),
    }))
    const outcomes: Record<string, number> = {}
    const failures: string[] = []
    const next = plans.values()
    const work = async () => {
      for (const plan of next) {
        const outcome = await exchange(target, plan).catch((error) => {
          failures.push(`${JSON.stringify(plan)}: ${error}`)
          return 'failed'
        })
        outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
      }
    }
    // No more at once: see the stall of HTTP/2 sessions in ARCHITECTURE, known gaps.
    await Promise.all(Array.from({ length: 3 }, work))
    return { outcomes, failures }
  },
  /** How the connection ends when nothing can serve it. */
  async failing() {
    const socket = connect({ host, port: Number(port), noDelay: true })
    socket.on('connect', () => socket.write('echo\n'))
    const received = await receiveAll(socket)
    return { bytes: received.bytes, by: received.by }
  },
  /** Echoes a line each 20 ms until told to stop by standard input; reports new connections and failures. */
  async 'steady-new-connections'() {
    let good = 0
    const failures: string[] = []
    let stop = false
    process.stdin.once('data', () => {
      stop = true
    })
    for (let i = 1; !stop; i++) {
      try {
        if (await echoOnce(target, i)) good++
        else failures.push('wrong echo')
      } catch (error) {
        failures.push(String(error))
      }
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    process.stdin.destroy()
    return { good, failures }
  },
  /** One connection that echoes a line each 20 ms until told to stop; reports whether it lived. */
  async 'steady-one-connection'() {
    const socket = await open('echo')
    let stop = false
    let ended = false
    process.stdin.once('data', () => {
      stop = true
    })
    socket.once('close', () => {
      ended = true
    })
    let echoes = 0
    while (!stop && !ended) {
      socket.write(`${echoes}\n`)
      const line = await readLine(socket).catch(() => undefined)
      if (line !== String(echoes)) break
      socket.resume()
      if (++echoes === 1) console.error('started')
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    process.stdin.destroy()
    socket.destroy()
    return { echoes, lived: stop && !ended }
  },
}

function drainedWithin(socket: Socket, ms: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const timer = setTimeout(() => resolve(false), ms)
  socket.once('drain', () => resolve(true))
  return promise.finally(() => clearTimeout(timer))
}

const run = cases[name]
if (run === undefined) throw new Error(`unknown case ${name}`)
console.log(JSON.stringify(await run()))
process.exit(0)
