import { EdgeMeshError, sentenceOf } from './errors.ts'
import type { Logger } from './log.ts'

type Stop = () => Promise<void> | void

/**
 * Stops in reverse order what was started. Each part is added once it runs; a stop that fails or outlives its
 * deadline is logged and does not keep the others from stopping.
 */
export class Lifecycle {
  readonly #parts: { name: string; stop: Stop; deadlineMs: number }[] = []
  readonly #log: Logger
  readonly #aborter = new AbortController()
  #stopped: Promise<void> | undefined

  constructor(log: Logger) {
    this.#log = log
  }

  /** Aborted when stopping begins; hand it to everything that waits. */
  get signal(): AbortSignal {
    return this.#aborter.signal
  }

  add(name: string, stop: Stop, deadlineMs = 5_000): void {
    this.#parts.push({ name, stop, deadlineMs })
  }

  /** Idempotent: later calls wait for the first. */
  stop(): Promise<void> {
    this.#stopped ??= this.#stopAll()
    return this.#stopped
  }

  async #stopAll(): Promise<void> {
    this.#aborter.abort(new EdgeMeshError('stopping', 'Cannot go on: the process is stopping.'))
    for (const { name, stop, deadlineMs } of this.#parts.reverse()) {
      try {
        await withDeadline(Promise.resolve(stop()), deadlineMs, `stop ${name}`)
      } catch (error) {
        this.#log.warn({ stopping: name, error: sentenceOf(error) }, 'a part did not stop cleanly')
      }
    }
  }
}

/** Rejects with code `timeout` when `promise` takes longer than `ms`; the promise itself goes on. */
export function withDeadline<T>(promise: Promise<T>, ms: number, doing: string): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(
    () => reject(new EdgeMeshError('timeout', `Cannot ${doing}: no answer within ${ms} ms.`)),
    ms,
  )
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

/** Resolves after `ms`, or at once (without error) when `signal` aborts; never keeps the process alive. */
export function pause(ms: number, signal?: AbortSignal): Promise<void> {
  if (signal?.aborted) return Promise.resolve()
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  timer.unref()
  signal?.addEventListener('abort', () => resolve(), { once: true })
  return promise.finally(() => clearTimeout(timer))
}

/** Full-jitter exponential backoff: a random delay in [0, min(capMs, baseMs * 2^attempt)), in ms. */
export function fullJitter(attempt: number, baseMs: number, capMs: number, random = Math.random): number {
  return random() * Math.min(capMs, baseMs * 2 ** Math.min(attempt, 30))
}
