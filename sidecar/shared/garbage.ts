import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import koffi from 'koffi'

/**
 * Gives back what a start leaves behind, some megabytes. V8 does so by itself while the event loop is idle, but less
 * thoroughly, and never in a thread whose loop does not run. Takes some 20 ms of the thread.
 */
export function giveBackGarbage(): void {
  setFlagsFromString('--expose-gc') // for contexts that are made from now on
  const gc: unknown = runInNewContext('gc')
  setFlagsFromString('--no-expose-gc') // else Node's own code, cached for these flags, is compiled for the next worker
  if (typeof gc === 'function') gc({ type: 'major', execution: 'sync', flavor: 'last-resort' })
  trim?.(0)
}

/** glibc keeps what was freed below what is in use; musl has no such function, and no need of it. */
const trim = functionIfAny('int malloc_trim(size_t pad)')

function functionIfAny(prototype: string): ((pad: number) => number) | undefined {
  try {
    return koffi.load(null).func(prototype)
  } catch {
    return undefined // this C library does not have it
  }
}
