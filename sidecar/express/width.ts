import { packetBytes } from '#shared/pump/libc.ts'

/** How much of a lane's bytes goes ahead of what is to be sent next. */
export interface Width {
  /** Sealed at once: streams that have more take turns. */
  batchBytes: number
  /** In the kernel, beyond what is on its way. */
  unsentBytes: number
}

/** A millisecond of 1 Gbit/s. */
export const wide: Width = { batchBytes: packetBytes, unsentBytes: 128 * 1024 }
/**
 * Through a slow uplink, small talk would wait behind the former for a second. It is enough for a lane to become fast again where
 * the kernel asks for more with each acknowledgement only (before 5.18), and those come every 30 ms.
 */
export const narrow: Width = { batchBytes: 16 * 1024, unsentBytes: 32 * 1024 }
/** A lane that is full though it has sent less than this is slow: 8 Mbit/s, in bytes a second. */
const slowBytesPerSecond = 1_000_000

/** What has been sent since it was last looked at, and how long ago that was. */
export interface Sent {
  bytes: number
  ms: number
  /** There is more than the socket takes. */
  isFull: boolean
}

/** How wide a lane should be, that is so wide now. One that was slow stays narrow until it is fast: with little to send it loses nothing. */
export function widthAfter(now: Width, { bytes, ms, isFull }: Sent): Width {
  if (bytes * 1_000 >= slowBytesPerSecond * ms) return wide
  return isFull ? narrow : now
}
