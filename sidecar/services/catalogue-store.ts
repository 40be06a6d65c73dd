import { mkdirSync, readFileSync, statSync } from 'node:fs'
import { open, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { codeOf, sentenceOf } from '#shared/errors.ts'
import type { Logger } from '#shared/log.ts'
import { parseJson } from '#shared/shape.ts'
import { type Snapshot, snapshotShape } from './catalogue.ts'

const fileName = 'catalogue.json'
const maxBytes = 64 * 1024 * 1024
/** Changes are written together, at most this often, in ms. */
const writeEveryMs = 1_000
/** What could not be written is tried again after this time, in ms. */
const retryMs = 10_000

/**
 * The last good catalogue on disk, so that a sidecar that restarts without the cloud still knows its services.
 * A disk that is full or broken costs one log line, never the sidecar.
 */
export class CatalogueStore {
  readonly #folder: string
  readonly #log: Logger
  #pending: (() => Snapshot) | undefined
  #timer: NodeJS.Timeout | undefined
  #writing: Promise<void> = Promise.resolve()
  #failing = false

  constructor(folder: string, log: Logger) {
    this.#folder = folder
    this.#log = log
  }

  /** Undefined when there is none that can be used. */
  load(): Snapshot | undefined {
    const path = join(this.#folder, fileName)
    try {
      if (statSync(path).size > maxBytes) throw new Error(`larger than ${maxBytes} bytes`)
      return parseJson(readFileSync(path, 'utf8'), snapshotShape)
    } catch (error) {
      if (codeOf(error) !== 'ENOENT')
        this.#log.warn({ path, error: sentenceOf(error) }, 'the kept catalogue is of no use')
      return undefined
    }
  }

  /** Writes soon; `snapshot` is called when the time comes, so a burst of changes is one file. */
  save(snapshot: () => Snapshot): void {
    this.#pending = snapshot
    this.#timer ??= setTimeout(() => this.#flush(), writeEveryMs).unref()
  }

  async close(): Promise<void> {
    this.#flush()
    await this.#writing
  }

  #flush(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    const snapshot = this.#pending
    this.#pending = undefined
    if (snapshot === undefined) return
    this.#writing = this.#writing.then(() => this.#write(snapshot))
  }

  async #write(snapshot: () => Snapshot): Promise<void> {
    const path = join(this.#folder, fileName)
    try {
      mkdirSync(this.#folder, { recursive: true })
      const file = await open(`${path}.new`, 'w', 0o600)
      try {
        await file.writeFile(JSON.stringify(snapshot()))
        await file.sync() // a crash must find the old file or the new one, never half of it
      } finally {
        await file.close()
      }
      await rename(`${path}.new`, path)
      this.#failing = false
    } catch (error) {
      if (!this.#failing)
        this.#log.warn({ path, error: sentenceOf(error) }, 'cannot keep the catalogue on disk')
      this.#failing = true
      // A disk that was full may have room again, and no change may come to be kept.
      this.#pending ??= snapshot
      this.#timer ??= setTimeout(() => this.#flush(), retryMs).unref()
    }
  }
}
