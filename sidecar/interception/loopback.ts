import { release } from 'node:os'
import { getSystemErrorName } from 'node:util'
import koffi from 'koffi'

const libc = koffi.load(null) // the C library that this process runs on, glibc or musl
const socket = libc.func('int socket(int domain, int type, int protocol)')
const setsockopt = libc.func(
  'int setsockopt(int fd, int level, int name, const uint8_t *value, uint32_t length)',
)
const bind = libc.func('int bind(int fd, const uint8_t *address, uint32_t length)')
const close = libc.func('int close(int fd)')

const AF_INET = 2
const SOCK_STREAM = 1
const SOCK_CLOEXEC = 0o2000000
const SOL_SOCKET = 1
const SO_REUSEADDR = 2
const SO_BINDTODEVICE = 25

/**
 * A TCP socket, not listening yet, on this port of every loopback address of IPv4: bound to all addresses, and to the
 * device `lo`, which nothing comes in by from outside. Where that fails it is the negative number of the system's error.
 */
export function loopbackSocket(port: number): number {
  const fd: number = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)
  if (fd < 0) return -koffi.errno()
  const [one, device, address] = [Buffer.alloc(4), Buffer.from('lo\0'), Buffer.alloc(16)]
  one.writeInt32LE(1)
  address.writeUInt16LE(AF_INET)
  address.writeUInt16BE(port, 2)
  const isBound =
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, one, one.length) === 0 &&
    setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, device.length) === 0 &&
    bind(fd, address, address.length) === 0
  if (isBound) return fd
  const error = koffi.errno()
  close(fd)
  return -error
}

/**
 * Where the interceptor listens on IPv4: all of loopback where the kernel allows it, as the rules of init then have it, and
 * undefined where it is 127.0.0.1 only. Throws the system's error where it should work and does not: what the rules send
 * to other addresses would be refused.
 */
export function interceptorSocket(port: number): number | undefined {
  if (!mayBindToDevice(release())) return undefined
  const fd = loopbackSocket(port)
  if (fd >= 0) return fd
  const code = getSystemErrorName(fd)
  throw Object.assign(new Error(`Cannot listen on port ${port} of all loopback addresses: ${code}.`), {
    code,
  })
}

/** Whether an unprivileged process may bind a socket to a device: since Linux 5.7. */
export function mayBindToDevice(release: string): boolean {
  const [major = 0, minor = 0] = release.split('.').map((part) => Number.parseInt(part, 10))
  return major > 5 || (major === 5 && minor >= 7)
}
