import { connect, createServer, type Server, type Socket } from 'node:net'
import { codeOf, EdgeMeshError } from '#shared/errors.ts'
import { pause } from '#shared/lifecycle.ts'
import type { Address, Opening } from '#shared/wire.ts'

/**
 * A node without firewall answers a SYN that comes before our own with a reset, and forgets its mapping then. Only two
 * SYNs that cross on the wire help, so refused dials are repeated without pause for so long, in ms: at first, as both sides
 * begin at about the same time, and again at each mark. Where they began further apart, their marks shift by 9 ms each time,
 * so that within some 1.1 s two bursts meet.
 */
const burstMs = { first: 40, later: 10 }
const markMs = { dialer: 100, acceptor: 91 }
const maxAccepted = 16

/**
 * Both sides dial each other from the ports that the server has seen, until one connection stands and has been
 * confirmed by both: of several sockets they must mean the same, and a stranger may answer at a private address that
 * exists at two sites. Rejects with `timeout` when the window is over.
 */
export async function openSimultaneously(
  localPort: number,
  opening: Opening,
  signal: AbortSignal,
): Promise<Socket> {
  await pause(opening.startInMs, signal)
  const attempt = new SimultaneousOpen(localPort, opening)
  const onAbort = () => attempt.end(signal.reason)
  if (signal.aborted) onAbort()
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    return await attempt.done
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

class SimultaneousOpen {
  readonly #localPort: number
  readonly #opening: Opening
  readonly #sockets = new Set<Socket>()
  readonly #timers = new Set<NodeJS.Timeout>()
  readonly #done = Promise.withResolvers<Socket>()
  /** What the last dial to each candidate met. */
  readonly #met = new Map<string, string>()
  readonly #startedAt = performance.now()
  #listener: Server | undefined
  #over = false

  constructor(localPort: number, opening: Opening) {
    this.#localPort = localPort
    this.#opening = opening
    const { candidates, listenAfterMs, windowMs } = opening
    this.#after(windowMs, () => this.end(this.#failure()))
    for (const candidate of candidates) this.#dial(candidate)
    if (listenAfterMs !== undefined) this.#after(listenAfterMs, () => this.#listen())
  }

  get done(): Promise<Socket> {
    return this.#done.promise
  }

  /** Ends all but the socket that was chosen, where there is one. */
  end(outcome: unknown, chosen?: Socket): void {
    if (this.#over) return
    this.#over = true
    for (const timer of this.#timers) clearTimeout(timer)
    this.#listener?.close()
    for (const socket of this.#sockets) if (socket !== chosen) socket.destroy()
    if (chosen === undefined) this.#done.reject(outcome)
    else this.#done.resolve(chosen)
  }

  #dial(candidate: Address): void {
    // Dialling from a port that listens is refused by the kernel.
    if (this.#over || this.#listener !== undefined) return
    const { address: host, port } = candidate
    const { retryMs } = this.#opening
    const socket = connect({ host, port, localPort: this.#localPort, noDelay: true, allowHalfOpen: false })
    this.#sockets.add(socket)
    let connected = false
    const unanswered = this.#after(retryMs, () => {
      if (this.#listener !== undefined) return // what is under way may still be answered, but not be begun anew
      socket.destroy()
      this.#met.set(host, 'no answer')
      this.#dial(candidate)
    })
    socket.once('connect', () => {
      connected = true
      this.#clear(unanswered)
      this.#confirm(socket)
    })
    socket.on('error', (error) => {
      this.#met.set(host, codeOf(error))
      if (connected) return
      this.#clear(unanswered)
      const refused = ['ECONNREFUSED', 'ECONNRESET'].includes(codeOf(error))
      const periodMs = markMs[this.#opening.role]
      const elapsedMs = performance.now() - this.#startedAt
      const sinceMark = elapsedMs % periodMs
      if (refused && (elapsedMs < burstMs.first || sinceMark < burstMs.later))
        setImmediate(() => this.#dial(candidate))
      else this.#after(periodMs - sinceMark, () => this.#dial(candidate))
    })
    socket.once('close', () => this.#sockets.delete(socket))
  }

  #listen(): void {
    const listener = createServer({ noDelay: true, allowHalfOpen: false }, (socket) => {
      this.#sockets.add(socket)
      socket.on('error', () => undefined) // followed by close
      socket.once('close', () => this.#sockets.delete(socket))
      this.#confirm(socket)
    })
    this.#listener = listener
    listener.maxConnections = maxAccepted
    listener.once('error', (error) => this.#met.set('listening', codeOf(error)))
    listener.listen(this.#localPort)
  }

  /** The asking side says its word on every connection, and means the one that is answered first. */
  #confirm(socket: Socket): void {
    const { role, ask, answer } = this.#opening
    const [said, heard] = role === 'dialer' ? [ask, answer] : [answer, ask]
    if (role === 'dialer') socket.write(said)
    const onReadable = () => {
      const word: Buffer | null = socket.read(heard.length)
      if (word === null) return
      socket.off('readable', onReadable)
      if (word.toString('latin1') !== heard) {
        socket.destroy()
        return
      }
      if (role === 'acceptor') socket.write(said)
      this.end(undefined, socket)
    }
    socket.on('readable', onReadable)
  }

  #failure(): EdgeMeshError {
    const met = [...this.#met].map(([where, what]) => `${where} ${what}`).join(', ')
    return new EdgeMeshError('timeout', `Cannot punch: no connection stood in time (${met || 'silence'}).`)
  }

  #after(ms: number, then: () => void): NodeJS.Timeout {
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      then()
    }, ms)
    this.#timers.add(timer)
    return timer
  }

  #clear(timer: NodeJS.Timeout): void {
    clearTimeout(timer)
    this.#timers.delete(timer)
  }
}
