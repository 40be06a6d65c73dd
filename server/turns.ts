/** How long work for many may hold the event loop at a stretch, in ms: everything else of the server waits for it. */
const heldMs = 10

/**
 * Does the work for each, in order, and lets the event loop go on whenever it was held for long. What is added to a set
 * meanwhile is worked on too, what is taken out of it is not.
 */
export async function inTurns<T>(all: Iterable<T>, work: (one: T) => void): Promise<void> {
  let until = performance.now() + heldMs
  for (const one of all) {
    work(one)
    if (performance.now() < until) continue
    await new Promise<void>((resolve) => setImmediate(resolve))
    until = performance.now() + heldMs
  }
}

/** Lets only so many through in one turn of the event loop, in the order of their coming. */
export class Turnstile {
  readonly #perTurn: number
  readonly #waiting: (() => void)[] = []

  constructor(perTurn: number) {
    this.#perTurn = perTurn
  }

  get waiting(): number {
    return this.#waiting.length
  }

  pass(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve)
      if (this.#waiting.length === 1) this.#turnSoon()
    })
  }

  #turnSoon(): void {
    setImmediate(() => {
      for (const resolve of this.#waiting.splice(0, this.#perTurn)) resolve()
      if (this.#waiting.length > 0) this.#turnSoon()
    })
  }
}
