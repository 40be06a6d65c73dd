import { isIP } from 'node:net'
import type { Destination } from '../services/destination.ts'

const AF_INET = 2
const AF_INET6 = 10

/** A sockaddr_in or sockaddr_in6 (port in network order at offset 2); undefined for what is no IP address. */
export function socketAddress({ address, port }: Destination): Buffer | undefined {
  const family = isIP(address)
  if (family === 4) {
    const bytes = Buffer.alloc(16)
    bytes.writeUInt16LE(AF_INET)
    bytes.writeUInt16BE(port, 2)
    bytes.set(address.split('.').map(Number), 4)
    return bytes
  }
  const groups = family === 6 ? groupsOf(address) : undefined
  if (groups === undefined) return undefined
  const bytes = Buffer.alloc(28)
  bytes.writeUInt16LE(AF_INET6)
  bytes.writeUInt16BE(port, 2)
  for (const [i, group] of groups.entries()) bytes.writeUInt16BE(group, 8 + 2 * i)
  return bytes
}

/** Undefined where the address names a zone, which only its own host can tell. */
function groupsOf(address: string): number[] | undefined {
  if (address.includes('%')) return undefined
  const canonical = new URL(`http://[${address}]`).hostname.slice(1, -1)
  const [head = '', tail] = canonical.split('::')
  const parse = (part: string) => (part === '' ? [] : part.split(':').map((g) => Number.parseInt(g, 16)))
  const [first, last] = [parse(head), parse(tail ?? '')]
  return [...first, ...Array<number>(8 - first.length - last.length).fill(0), ...last]
}

/** Port and address of a sockaddr as a string: what flows are found by, at the cost of a slice. */
export function flowKeyOf(address: Buffer, family: 4 | 6): string {
  if (family === 4) return address.toString('latin1', 2, 8)
  return address.toString('latin1', 2, 4) + address.toString('latin1', 8, 24)
}

/** The sockaddr of a flow key. */
export function socketAddressOf(key: string): Buffer {
  const isV4 = key.length === 6
  const bytes = Buffer.alloc(isV4 ? 16 : 28)
  bytes.writeUInt16LE(isV4 ? AF_INET : AF_INET6)
  if (isV4) bytes.write(key, 2, 'latin1')
  else {
    bytes.write(key.slice(0, 2), 2, 'latin1')
    bytes.write(key.slice(2), 8, 'latin1')
  }
  return bytes
}
