import { inTurns } from './turns.ts'

/** A channel, as far as the catalogue is brought to it: each call brings it what there is now, if it lacks that. */
export interface Subscriber {
  sendIndexChange(): void
  sendEndpoints(service: string): void
}

export interface FanOutOptions<S extends Subscriber> {
  subscribers: Iterable<S>
  followersOf: (service: string) => Iterable<S>
  /** Brings it what concerns itself alone. */
  sendSelf: (subscriber: S) => void
}

/**
 * Brings changes of the catalogue to thousands of channels without a long pause of anything else. What changes during
 * a round is brought in the next one, all of it at once: so a catalogue that changes all the time costs no more.
 */
export class FanOut<S extends Subscriber> {
  readonly #options: FanOutOptions<S>
  #changed = new Set<string>()
  #due = false
  #running = false

  constructor(options: FanOutOptions<S>) {
    this.#options = options
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
        await this.#round(services)
      }
    } finally {
      this.#running = false
    }
  }

  async #round(services: Iterable<string>): Promise<void> {
    const { subscribers, followersOf, sendSelf } = this.#options
    await inTurns(subscribers, (s) => s.sendIndexChange())
    for (const service of services) await inTurns(followersOf(service), (s) => s.sendEndpoints(service))
    await inTurns(subscribers, sendSelf)
  }
}
