import { codeOf, EdgeMeshError } from '#shared/errors.ts'
import { pause } from '#shared/lifecycle.ts'
import type { Choice } from '../services/balancer.ts'
import { blamesEndpoint, type EndpointHealth } from '../services/health.ts'

/** An endpoint without a session has so long for one, in ms, before another is tried beside it: direct, then the relay. */
export const headStartMs = 400
/** An open stream that is not answered for so long, in ms, has another beside it: its session may be dead. */
const patienceMs = 1_000

export interface AttemptsOptions<T> {
  /** `namespace/name`, for the error. */
  service: string
  /** Another endpoint than those that were tried; undefined when none is left. */
  next: (tried: ReadonlySet<string>) => Promise<Choice | undefined>
  /** Makes sure of a session to the endpoint, of which its app learns nothing; undefined where there is one. */
  reach: (choice: Choice) => Promise<unknown> | undefined
  /** Connects to the app itself. */
  open: (choice: Choice) => Promise<T>
  /** What was opened after another had won. */
  discard: (late: T) => void
  onStart: (choice: Choice) => void
  /** It was started and did not win. */
  onLost: (choice: Choice) => void
  onEjected: (code: string) => void
  onRetry: (reason: string) => void
  /** 0 when one more attempt may be made, else how long until then, in ms. */
  budget: () => number
  health: EndpointHealth
}

type Event<T> =
  | { kind: 'reached'; choice: Choice }
  | { kind: 'slow'; choice: Choice }
  | { kind: 'opened'; choice: Choice; value: T }
  | { kind: 'failed'; choice: Choice; error: unknown }
  | { kind: 'aborted' }

/**
 * Tries endpoints until one is connected: another when one fails, and beside one that is slow. Sessions are raced;
 * streams are opened one at a time, as each is seen by an app, unless one is not answered.
 */
export class Attempts<T> {
  readonly #options: AttemptsOptions<T>
  readonly #signal: AbortSignal
  readonly #started = new Map<string, Choice>()
  /** By the clock of `health`. */
  readonly #beganMs = new Map<string, number>()
  readonly #timers = new Map<string, NodeJS.Timeout>()
  /** Reached, while the stream of another was being opened. */
  readonly #reached: Choice[] = []
  readonly #events: Event<T>[] = []
  #wake: (() => void) | undefined
  #running = 0
  #opening: string | undefined
  #over = false

  constructor(options: AttemptsOptions<T>, signal: AbortSignal) {
    this.#options = options
    this.#signal = signal
  }

  /** Rejects with the last failure once none is left to try, or with the signal's reason. */
  async connect(): Promise<{ choice: Choice; value: T }> {
    const onAbort = () => this.#tell({ kind: 'aborted' })
    this.#signal.addEventListener('abort', onAbort)
    let won: Choice | undefined
    try {
      const winner = await this.#run()
      won = winner.choice
      return winner
    } finally {
      this.#over = true
      this.#signal.removeEventListener('abort', onAbort)
      for (const timer of this.#timers.values()) clearTimeout(timer)
      for (const event of this.#events) if (event.kind === 'opened') this.#options.discard(event.value)
      for (const choice of this.#started.values()) if (choice !== won) this.#options.onLost(choice)
    }
  }

  async #run(): Promise<{ choice: Choice; value: T }> {
    await this.#start(undefined)
    let last: unknown = new EdgeMeshError(
      'no-endpoint',
      `Cannot connect to service ${this.#options.service}: it has no ready endpoint.`,
    )
    while (this.#running > 0) {
      const event = await this.#nextEvent()
      if (event.kind === 'aborted') throw this.#signal.reason
      const { choice } = event
      if (event.kind === 'opened') return event
      if (event.kind === 'reached') this.#openOrWait(choice)
      else if (event.kind === 'slow') {
        this.#options.health.slow(choice.healthKey)
        if (!this.#yieldTurn(choice)) await this.#start('slow')
      } else {
        last = event.error
        this.#running--
        clearTimeout(this.#timers.get(choice.key))
        if (!this.#yieldTurn(choice)) await this.#start(codeOf(last))
      }
    }
    if (this.#signal.aborted) throw this.#signal.reason
    throw last
  }

  /** One more attempt, if there is an endpoint left and, for a retry, the budget allows it. */
  async #start(retry: string | undefined): Promise<void> {
    const { next, budget, health, onStart, onRetry } = this.#options
    const choice = await next(new Set(this.#started.keys()))
    if (choice === undefined || this.#signal.aborted) return
    for (let waitMs = retry === undefined ? 0 : budget(); waitMs > 0; waitMs = budget()) {
      // An endpoint that failed others a moment ago is not worth the wait, and nothing is while an attempt runs.
      if (choice.ejected || this.#running > 0) return
      await pause(waitMs, this.#signal)
      if (this.#signal.aborted) return
    }
    if (retry !== undefined) onRetry(retry)
    this.#started.set(choice.key, choice)
    this.#running++
    this.#beganMs.set(choice.key, health.trying(choice.healthKey))
    onStart(choice)
    this.#reach(choice)
  }

  #reach(choice: Choice): void {
    const reaching = this.#options.reach(choice)
    if (reaching === undefined) {
      this.#openOrWait(choice)
      return
    }
    this.#watch(choice, headStartMs)
    reaching.then(
      () => this.#tell({ kind: 'reached', choice }),
      (error) => this.#fail(choice, error),
    )
  }

  #openOrWait(choice: Choice): void {
    clearTimeout(this.#timers.get(choice.key))
    if (this.#opening !== undefined) {
      this.#reached.push(choice)
      return
    }
    const { open, discard, health } = this.#options
    this.#opening = choice.key
    this.#watch(choice, patienceMs)
    open(choice).then(
      (value) => {
        health.succeeded(choice.healthKey)
        if (this.#over) discard(value)
        else this.#tell({ kind: 'opened', choice, value })
      },
      (error) => {
        if (this.#signal.aborted) this.#tell({ kind: 'failed', choice, error })
        else this.#fail(choice, error)
      },
    )
  }

  /** Lets the next one open that waits for it; false when none does. */
  #yieldTurn(choice: Choice): boolean {
    if (this.#opening !== choice.key && this.#opening !== undefined) return true
    this.#opening = undefined
    const waiting = this.#reached.shift()
    if (waiting !== undefined) this.#openOrWait(waiting)
    return waiting !== undefined
  }

  /** The endpoint is judged even when another has won meanwhile. */
  #fail(choice: Choice, error: unknown): void {
    const code = codeOf(error)
    if (blamesEndpoint(code)) {
      this.#options.health.failed(choice.healthKey, this.#beganMs.get(choice.key) ?? 0)
      this.#options.onEjected(code)
    }
    this.#tell({ kind: 'failed', choice, error })
  }

  #watch(choice: Choice, ms: number): void {
    const timer = setTimeout(() => this.#tell({ kind: 'slow', choice }), ms)
    this.#timers.set(choice.key, timer)
  }

  #tell(event: Event<T>): void {
    this.#events.push(event)
    this.#wake?.()
  }

  async #nextEvent(): Promise<Event<T>> {
    if (this.#signal.aborted) return { kind: 'aborted' }
    if (this.#events.length === 0) {
      const { promise, resolve } = Promise.withResolvers<void>()
      this.#wake = resolve
      await promise
    }
    return this.#events.shift() ?? { kind: 'aborted' }
  }
}
