import { createInterface } from 'node:readline'

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()

/** The next command of the bench: one JSON value per line; undefined when it has gone. */
export async function nextCommand<T>(): Promise<T | undefined> {
  const { value, done } = await lines.next()
  return done ? undefined : (JSON.parse(value) as T)
}

export function answer(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`)
}
