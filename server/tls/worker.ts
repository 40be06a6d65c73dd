import { parentPort } from 'node:worker_threads'
import koffi from 'koffi'
import { sentenceOf } from '#shared/errors.ts'
import type { Answer, Order, Report } from './messages.ts'
import { ServerContext, ServerHandshake } from './openssl.ts'

/** How long after the last handshake the C library gives back what is free, in ms. */
const quietMs = 1_000

/** Absent from C libraries that give it back by themselves. */
const giveBack = mallocTrim()
const handshakes = new Map<number, ServerHandshake>()
let context: ServerContext | undefined
const quiet = setTimeout(giveBack, quietMs)

function obey(order: Order): void {
  if (order.type === 'identity') {
    const next = new ServerContext(order)
    context?.free()
    context = next
    report({ type: 'ready' })
  } else if (order.type === 'drop') drop(order.id)
  else report(answerTo(order))
}

function answerTo({ id, bytes }: Extract<Order, { type: 'bytes' }>): Answer {
  if (context === undefined) throw new Error('there is no certificate')
  const handshake = handshakes.get(id) ?? new ServerHandshake(context)
  handshakes.set(id, handshake)
  quiet.refresh()
  try {
    const isDone = handshake.take(bytes) === 'done'
    const answer = { type: 'answer', id, bytes: handshake.answer() } as const
    if (!isDone) return answer
    const done = handshake.result()
    drop(id)
    return { ...answer, done }
  } catch (error) {
    const alert = handshake.answer()
    drop(id)
    return { type: 'answer', id, bytes: alert, error: sentenceOf(error) }
  }
}

/**
 * Thousands of handshakes leave holes between what outlives them, in this thread's memory and in that of the threads that
 * sign certificates: 25 kB for each channel.
 */
function mallocTrim(): () => void {
  try {
    const trim = koffi.load(null).func('int malloc_trim(size_t keep)')
    return () => trim(0)
  } catch {
    return () => undefined // musl
  }
}

function drop(id: number): void {
  handshakes.get(id)?.free()
  handshakes.delete(id)
}

function report(message: Report): void {
  parentPort?.postMessage(message)
}

parentPort?.on('message', obey)
