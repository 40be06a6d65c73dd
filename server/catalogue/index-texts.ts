import { IndexHistory, type IndexMessage } from './history.ts'
import type { CatalogueState } from './source.ts'

/** The messages of the index as text: thousands of channels get the same, which is encoded once. */
export class IndexTexts {
  readonly #history: IndexHistory
  #whole = { version: 0, text: '' }
  /** The last delta that was asked for: in a change nearly all ask for the same. */
  #delta = { version: 0, known: 0, text: '' }

  constructor(services: CatalogueState['services']) {
    this.#history = new IndexHistory(services)
  }

  get version(): number {
    return this.#history.version
  }

  /** Which of our versions a client has; 0 for none, as when it was counted by another process. */
  knownTo(resume: { epoch: string; version: number } | undefined): number {
    return resume?.epoch === this.#history.epoch ? resume.version : 0
  }

  advance(services: CatalogueState['services']): void {
    this.#history.advance(services)
  }

  /** What brings a client from the version that it knows to the present one. */
  since(known: number): string {
    const { version, epoch } = this.#history
    if (this.#delta.version === version && this.#delta.known === known) return this.#delta.text
    const index = this.#history.since({ epoch, version: known })
    if (index.full) return this.#wholeText(index)
    this.#delta = { version, known, text: JSON.stringify(index) }
    return this.#delta.text
  }

  #wholeText(index: IndexMessage): string {
    const { version } = this.#history
    if (this.#whole.version !== version) this.#whole = { version, text: JSON.stringify(index) }
    return this.#whole.text
  }
}
