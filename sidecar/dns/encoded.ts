/** Bounds of what is kept, in entries and in bytes of a question: 2 MB at the most. */
const maxEntries = 1_000
const maxQuestionBytes = 512
const idBytes = 2

/** An answer as it was sent once; without `service` it names none. */
export interface Encoded {
  answer: Buffer
  rcode: string
  service?: string | undefined
}

/**
 * Encoded answers to whole messages, byte for byte but for the id. Apps ask the same few questions over and over:
 * then nothing is decoded, decided or encoded, which is most of what an answer costs. What is kept is of one version
 * of the catalogue's services, and goes when that changes; its TTLs are constant.
 */
export class EncodedAnswers {
  #entries = new Map<string, Encoded>()
  #version = -1

  get size(): number {
    return this.#entries.size
  }

  /** What was answered to the same message at the same `version`; its buffer is not to be written to. */
  get(message: Buffer, version: number): Encoded | undefined {
    return version === this.#version ? this.#entries.get(keyOf(message)) : undefined
  }

  put(message: Buffer, version: number, encoded: Encoded): void {
    if (message.length > maxQuestionBytes) return
    // All at once when full: who asks so many different questions gains nothing from being remembered.
    if (version !== this.#version || this.#entries.size >= maxEntries) this.#entries.clear()
    this.#version = version
    this.#entries.set(keyOf(message), encoded)
  }
}

/** A copy of an answer, for another message. */
export function answerTo(message: Buffer, { answer }: Encoded): Buffer {
  const copy = Buffer.from(answer)
  message.copy(copy, 0, 0, idBytes)
  return copy
}

function keyOf(message: Buffer): string {
  return message.toString('latin1', idBytes)
}
