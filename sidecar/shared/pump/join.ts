import type { Socket } from 'node:net'
import { descriptorOf } from '../descriptor.ts'
import { pause } from '../lifecycle.ts'
import { isTcp } from '../reset.ts'
import type { Side, Splice, SpliceOptions } from '../splice.ts'
import { bulkBytesOf, type FastPathMode } from './mode.ts'
import type { Pump } from './pump.ts'

/** How long a slow reader may hold the move up, in ms; after it the splice goes on as before, until bulk is seen again. */
const patienceMs = 200

/** For splices of two sockets: bulk goes to the pump. */
export function joinOptions(pump: Pump, mode: FastPathMode): SpliceOptions {
  if (mode === 'never') return {}
  const bulkBytes = bulkBytesOf(mode)
  const onBulk = (splice: Splice) => void joinByPump(splice, pump)
  return { onBulk, ...(bulkBytes === undefined ? {} : { bulkBytes }) }
}

const busy = new WeakSet<Splice>()

/**
 * Moves a splice of two sockets to the pump, between two bytes: there is a moment at which neither socket has bytes
 * left to be written, and from which on the kernel alone knows what comes next.
 */
export async function joinByPump(splice: Splice, pump: Pump): Promise<void> {
  const [a, b] = [splice.stream('a'), splice.stream('b')]
  if (!isTcp(a) || !isTcp(b) || busy.has(splice) || splice.isElsewhere || !pump.available) return
  busy.add(splice)
  try {
    if (!(await pump.ready())) return
    if (tryJoin(splice, pump)) return
    // The one that reads slowly has bytes left; its sender waits for it, the other direction does not.
    const slow: Side = a.writableLength > 0 ? 'a' : 'b'
    const fast: Side = slow === 'a' ? 'b' : 'a'
    if (splice.intact && !splice.hasEnded(fast)) splice.halt(fast)
    await Promise.race([splice.flushed(slow), pause(patienceMs)])
    if (!tryJoin(splice, pump)) splice.resume(fast)
  } finally {
    busy.delete(splice)
  }
}

/** All in one go: nothing may be read or written in between. */
function tryJoin(splice: Splice, pump: Pump): boolean {
  if (!splice.intact) return true
  const ended = { a: splice.hasEnded('a'), b: splice.hasEnded('b') }
  if (ended.a && ended.b) return true
  for (const side of ['a', 'b'] as const) if (!ended[side]) splice.halt(side)
  const [a, b] = [splice.stream('a'), splice.stream('b')] as [Socket, Socket]
  const moving = a.writableLength + b.writableLength === 0 ? joinFds(pump, a, b, ended) : undefined
  if (moving === undefined) {
    for (const side of ['a', 'b'] as const) if (!ended[side]) splice.resume(side)
    return false
  }
  splice.carryOn(moving)
  splice.handOver('a')
  splice.handOver('b')
  return true
}

function joinFds(pump: Pump, a: Socket, b: Socket, ended: { a: boolean; b: boolean }) {
  const [fdA, fdB] = [descriptorOf(a), descriptorOf(b)]
  return fdA === undefined || fdB === undefined ? undefined : pump.join(fdA, fdB, ended)
}
