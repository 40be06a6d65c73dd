// The traffic of the chaos suite, in the client's pod: `node load.ts SEED ROUTE=SERVICE...`. Says `{"ready":true}` once
// every long connection has echoed, goes on until a line comes on standard input, and then prints its report.
import { Resolver } from 'node:dns/promises'
import { connect, type Socket } from 'node:net'
import { setTimeout as pause } from 'node:timers/promises'
import { SeededBytes, SeededCheck } from '../conformance/traffic.ts'
import { Seeded } from '../server/seeded.ts'
import type { Ended, LoadReport } from './verdict.ts'

const [seedText = '1', ...targets] = process.argv.slice(2)
const port = 8080
/** A connection that neither ends nor brings a byte for so long is stuck, in ms. */
const stuckMs = 15_000
/** A new connection to each service so often, in ms. */
const newEveryMs = 150
/** Long connections of each service: bytes of an exchange, and the pause after it in ms. The last one is bulk. */
const longOnes = [
  { bytes: 2_000, pauseMs: 50 },
  { bytes: 20_000, pauseMs: 200 },
  { bytes: 256_000, pauseMs: 100 },
] as const

const random = new Seeded(Number(seedText))
const resolver = new Resolver({ timeout: 2_000, tries: 3 })
const report: LoadReport = { fresh: [], long: [], bytes: 0 }
let streams = 0
let stopping = false

const now = () => Math.round(performance.timeOrigin + performance.now())

/** One connection to an echo; every byte that comes back is compared. */
class Echo {
  readonly #socket: Socket
  readonly #bytes: SeededBytes
  readonly #check: SeededCheck
  #unsent: Buffer = Buffer.alloc(0)
  #sent = 0
  #how: Ended['how'] | undefined
  #why = ''
  #changed = Promise.withResolvers<void>()

  constructor(host: string) {
    const seed = Number(seedText) * 1_000_003 + 7 * ++streams
    this.#bytes = new SeededBytes(seed)
    this.#check = new SeededCheck(Number.POSITIVE_INFINITY, seed)
    this.#socket = connect({ host, port, allowHalfOpen: true, noDelay: true })
    this.#socket.on('data', (chunk) => this.#take(chunk))
    this.#socket.once('end', () =>
      this.#end(this.#socket.writableEnded && this.#check.correct === this.#sent ? 'good' : 'truncated'),
    )
    this.#socket.once('error', (error) => this.#end('reset', error.message))
    this.#socket.once('close', () => this.#end('reset'))
    this.#socket.write('echo\n')
  }

  get outcome(): { how: Ended['how']; why: string } | undefined {
    return this.#how && { how: this.#how, why: this.#why }
  }

  /** Sends so many bytes and waits for their echo; false once the connection has ended. */
  async exchange(bytes: number): Promise<boolean> {
    for (let left = bytes; left > 0; ) {
      if (this.#unsent.length === 0) this.#unsent = this.#bytes.block()
      const part = this.#unsent.subarray(0, left)
      this.#unsent = this.#unsent.subarray(part.length)
      left -= part.length
      this.#sent += part.length
      this.#socket.write(part)
    }
    return this.#until(() => this.#check.correct === this.#sent)
  }

  /** A FIN each way. */
  async finish(): Promise<void> {
    this.#socket.end()
    await this.#until(() => false)
    this.#socket.destroy()
  }

  /** False once it has ended. Each byte that comes gives it `stuckMs` more. */
  async #until(done: () => boolean): Promise<boolean> {
    const timer = setTimeout(() => this.#end('stuck', `${this.#check.correct} of ${this.#sent}`), stuckMs)
    while (this.#how === undefined && !done()) {
      await this.#changed.promise
      timer.refresh()
    }
    clearTimeout(timer)
    if (this.#how !== undefined) this.#socket.destroy()
    return this.#how === undefined
  }

  #take(chunk: Buffer): void {
    report.bytes += chunk.length
    try {
      this.#check.take(chunk)
    } catch (error) {
      this.#end('corrupt', String(error))
    }
    if (this.#check.correct > this.#sent) this.#end('corrupt', 'more came than was sent')
    this.#wake()
  }

  #end(how: Ended['how'], why = ''): void {
    this.#how ??= how
    this.#why ||= why
    this.#wake()
  }

  #wake(): void {
    this.#changed.resolve()
    this.#changed = Promise.withResolvers<void>()
  }
}

interface Target {
  route: string
  service: string
}

/** By its name, as an app does; a name that is not answered is a connection that fails. */
async function carry({ route, service }: Target, life: (echo: Echo) => Promise<void>): Promise<Ended> {
  const startedAt = now()
  const ended = (how: Ended['how'], why: string) => ({ route, startedAt, endedAt: now(), how, why })
  try {
    const [address = ''] = await resolver.resolve4(`${service}.default.svc.cluster.local`)
    const echo = new Echo(address)
    await life(echo)
    const { how, why } = echo.outcome ?? { how: 'stuck', why: 'it did not end' }
    return ended(how, why)
  } catch (error) {
    return ended('reset', String(error))
  }
}

async function newConnections(target: Target): Promise<void> {
  const open = new Set<Promise<unknown>>()
  while (!stopping) {
    const bytes = 1 + random.below(8_000)
    const one = carry(target, async (echo) => {
      await echo.exchange(bytes)
      await echo.finish()
    }).then((ended) => {
      report.fresh.push(ended)
      open.delete(one)
    })
    open.add(one)
    await pause(newEveryMs)
  }
  await Promise.all(open)
}

/** One long connection at a time; another when it has ended. */
async function longConnection(
  target: Target,
  { bytes, pauseMs }: (typeof longOnes)[number],
  onFirst: () => void,
): Promise<void> {
  while (!stopping) {
    const ended = await carry(target, async (echo) => {
      while (!stopping && (await echo.exchange(1 + random.below(bytes)))) {
        onFirst()
        await pause(pauseMs)
      }
      await echo.finish()
    })
    report.long.push(ended)
    if (!stopping) await pause(newEveryMs)
  }
}

const chosen = targets.map((text): Target => {
  const [route = '', service = ''] = text.split('=')
  return { route, service }
})
const work: Promise<void>[] = []
const firsts: Promise<void>[] = []
for (const target of chosen) {
  work.push(newConnections(target))
  for (const kind of longOnes) {
    const first = Promise.withResolvers<void>()
    firsts.push(first.promise)
    work.push(longConnection(target, kind, first.resolve))
  }
}
process.stdin.once('data', () => {
  stopping = true
  process.stdin.destroy()
})
await Promise.all(firsts)
console.log(JSON.stringify({ ready: true }))
await Promise.all(work)
process.stdout.write(`${JSON.stringify(report)}\n`, () => process.exit(0)) // a long line is not written at once
