import koffi from 'koffi'
import { EdgeMeshError } from '#shared/errors.ts'
import type { Destination } from '../services/destination.ts'

/** Level and option of getsockopt(2); linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h. */
const options = {
  4: { level: 0, name: 80, size: 16 }, // SOL_IP, SO_ORIGINAL_DST, struct sockaddr_in
  6: { level: 41, name: 80, size: 28 }, // SOL_IPV6, IP6T_SO_ORIGINAL_DST, struct sockaddr_in6
} as const

const libc = koffi.load(null) // the C library that this process runs on, glibc or musl
const getsockopt = libc.func(
  'int getsockopt(int fd, int level, int name, _Out_ uint8_t *value, _Inout_ uint32_t *length)',
)
// The call is synchronous, so one buffer serves every connection.
const value = Buffer.alloc(28)
const length = [0]

/**
 * Where an accepted connection was meant to go before the kernel redirected it, from conntrack by way of
 * getsockopt(SO_ORIGINAL_DST). `no-original-destination` when the kernel does not know.
 */
export function originalDestination(fd: number | undefined, family: 4 | 6): Destination {
  if (fd === undefined) {
    throw new EdgeMeshError('no-original-destination', 'Cannot look at the connection: it is already closed.')
  }
  const { level, name, size } = options[family]
  length[0] = size
  if (getsockopt(fd, level, name, value, length) !== 0) {
    const errno = koffi.errno()
    const known = Object.entries(koffi.os.errno).find(([, number]) => number === errno)?.[0] ?? String(errno)
    throw new EdgeMeshError(
      'no-original-destination',
      `Cannot tell where the connection was meant to go: getsockopt(SO_ORIGINAL_DST) fails with ${known}. Only connections that the EDGE-MESH rules redirect belong here.`,
    )
  }
  return parseSocketAddress(value, family)
}

/** A sockaddr_in or sockaddr_in6 (port in network order at offset 2), IPv6 in its canonical spelling. */
export function parseSocketAddress(bytes: Buffer, family: 4 | 6): Destination {
  const port = bytes.readUInt16BE(2)
  if (family === 4) return { address: bytes.subarray(4, 8).join('.'), port }
  const groups = Array.from({ length: 8 }, (_, i) => bytes.readUInt16BE(8 + 2 * i).toString(16))
  return { address: new URL(`http://[${groups.join(':')}]`).hostname.slice(1, -1), port }
}
