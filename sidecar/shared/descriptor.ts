import type { Duplex } from 'node:stream'

/**
 * The file descriptor of an open socket, which Node has no public name for; undefined once it is closed, and for TLS, whose
 * descriptor carries something else than what is read and written.
 */
export function descriptorOf(socket: Duplex): number | undefined {
  if ('encrypted' in socket) return undefined
  const { _handle: handle } = socket as Duplex & { _handle?: { fd?: number } | null }
  return handle?.fd === undefined || handle.fd < 0 ? undefined : handle.fd
}

/** Node may read on after pause(), until its buffer is full; the handle itself does what it is told. */
export function setReading(socket: Duplex, on: boolean): void {
  const { _handle: handle } = socket as unknown as {
    _handle?: { reading: boolean; readStart(): number; readStop(): number } | null
  }
  if (!handle) return
  handle.reading = on
  if (on) handle.readStart()
  else handle.readStop()
}

/** Whether bytes that were written wait for room in the kernel's buffer; of TLS, those that are sealed already. */
export function isWriteWaiting(socket: Duplex): boolean {
  const { _handle: handle } = socket as unknown as { _handle?: { writeQueueSize?: number } | null }
  return (handle?.writeQueueSize ?? 0) > 0
}
