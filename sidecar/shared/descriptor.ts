import type { Duplex } from 'node:stream'

/** The file descriptor of an open socket, which Node has no public name for; undefined once it is closed. */
export function descriptorOf(socket: Duplex): number | undefined {
  const { _handle: handle } = socket as Duplex & { _handle?: { fd?: number } | null }
  return handle?.fd === undefined || handle.fd < 0 ? undefined : handle.fd
}
