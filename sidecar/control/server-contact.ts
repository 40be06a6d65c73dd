import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { sentenceOf } from '#shared/errors.ts'
import type { Logger } from '#shared/log.ts'
import { flag, integer, object, parseJson } from '#shared/shape.ts'

const fileName = 'server-contact.json'
const kept = object({ up: flag, since: integer(0, Number.MAX_SAFE_INTEGER) })

/**
 * Since when the server is away. With a folder the answer survives a restart of the container; one that was killed
 * while it was connected counts from its new start, which is never too early.
 */
export class ServerContact {
  readonly #folder: string | undefined
  readonly #log: Logger
  readonly #listeners: (() => void)[] = []
  #downSince: number | undefined

  constructor(folder: string | undefined, log: Logger) {
    this.#folder = folder
    this.#log = log
    const now = Date.now()
    const before = folder === undefined ? undefined : read(join(folder, fileName), log)
    this.#downSince = before === undefined || before.up ? now : Math.min(before.since, now)
  }

  /** Milliseconds since the epoch; undefined while the server is there. */
  get downSince(): number | undefined {
    return this.#downSince
  }

  /** Called whenever the server is there again. */
  onUp(listener: () => void): void {
    this.#listeners.push(listener)
  }

  up(): void {
    this.#downSince = undefined
    this.#keep({ up: true, since: Date.now() })
    for (const listener of this.#listeners) listener()
  }

  lost(): void {
    const since = Date.now()
    this.#downSince = since
    this.#keep({ up: false, since })
  }

  #keep(state: { up: boolean; since: number }): void {
    if (this.#folder === undefined) return
    const path = join(this.#folder, fileName)
    try {
      mkdirSync(this.#folder, { recursive: true, mode: 0o700 })
      writeFileSync(`${path}.new`, JSON.stringify(state), { mode: 0o600 })
      renameSync(`${path}.new`, path)
    } catch (error) {
      this.#log.warn({ error: sentenceOf(error) }, 'cannot keep since when the server is away')
      this.#forget(path)
    }
  }

  /** What the file says is not true any more. */
  #forget(path: string): void {
    try {
      rmSync(path, { force: true })
    } catch (error) {
      this.#log.debug({ error: sentenceOf(error) }, 'nothing was kept')
    }
  }
}

function read(path: string, log: Logger) {
  try {
    return parseJson(readFileSync(path, 'utf8'), kept)
  } catch (error) {
    log.debug({ error: sentenceOf(error) }, 'not kept since when the server is away')
    return undefined
  }
}
