import { inTurns } from './turns.ts'

/**
 * Brings changes of the catalogue to thousands without a long pause of anything else. What changes during a round is
 * brought in the next one, all of it at once: so a catalogue that changes all the time costs no more.
 */
export class FanOut<T> {
  readonly #all: Iterable<T>
  readonly #bring: (one: T, services: ReadonlySet<string>) => void
  #changed = new Set<string>()
  #due = false
  #running = false

  /** `bring` is told of which services the endpoints have changed, and brings what there is now. */
  constructor(all: Iterable<T>, bring: (one: T, services: ReadonlySet<string>) => void) {
    this.#all = all
    this.#bring = bring
  }

  /** The catalogue is another one, and so are the endpoints of these services. */
  onChange(services: Iterable<string>): void {
    for (const service of services) this.#changed.add(service)
    this.#due = true
    if (!this.#running) void this.#run()
  }

  async #run(): Promise<void> {
    this.#running = true
    try {
      while (this.#due) {
        const services = this.#changed
        this.#changed = new Set()
        this.#due = false
        await inTurns(this.#all, (one) => this.#bring(one, services))
      }
    } finally {
      this.#running = false
    }
  }
}
