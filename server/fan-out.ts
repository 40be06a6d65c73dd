import { inTurns } from './turns.ts'

/** What of the catalogue has changed, beyond the index. */
export interface Changes {
  /** Services whose endpoints have. */
  readonly services: ReadonlySet<string>
  /** Pods whose declared ports may have, by uid. */
  readonly pods: ReadonlySet<string>
}

/**
 * Brings changes of the catalogue to thousands without a long pause of anything else. What changes during a round is
 * brought in the next one, all of it at once: so a catalogue that changes all the time costs no more.
 */
export class FanOut<T> {
  readonly #all: Iterable<T>
  readonly #bring: (one: T, changes: Changes) => void
  #next: { services: Set<string>; pods: Set<string> } | undefined
  #running = false

  /** `bring` is told what has changed, and brings what there is now. */
  constructor(all: Iterable<T>, bring: (one: T, changes: Changes) => void) {
    this.#all = all
    this.#bring = bring
  }

  get isRunning(): boolean {
    return this.#running
  }

  /** The catalogue has changed: its index, the endpoints of these services, or what these pods may declare. */
  onChange({ services, pods }: { services: Iterable<string>; pods: Iterable<string> }): void {
    this.#next ??= { services: new Set(), pods: new Set() }
    for (const service of services) this.#next.services.add(service)
    for (const pod of pods) this.#next.pods.add(pod)
    if (!this.#running) void this.#run()
  }

  async #run(): Promise<void> {
    this.#running = true
    try {
      for (let changes = this.#next; changes !== undefined; changes = this.#next) {
        const round: Changes = changes
        this.#next = undefined
        await inTurns(this.#all, (one) => this.#bring(one, round))
      }
    } finally {
      this.#running = false
    }
  }
}
