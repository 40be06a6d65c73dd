import { arch } from 'node:os'
import koffi from 'koffi'

const libc = koffi.load(null) // the C library that this process runs on, glibc or musl

/** Each returns -1 on failure, with the reason in `errno()`. Descriptors are plain numbers. */
export const dup = libc.func('int dup(int fd)') as (fd: number) => number
export const close = libc.func('int close(int fd)') as (fd: number) => number
export const shutdown = libc.func('int shutdown(int fd, int how)') as (fd: number, how: number) => number
export const recv = libc.func('int64_t recv(int fd, _Out_ uint8_t *buffer, size_t length, int flags)') as (
  fd: number,
  buffer: Buffer,
  length: number,
  flags: number,
) => number
export const send = libc.func('int64_t send(int fd, const uint8_t *buffer, size_t length, int flags)') as (
  fd: number,
  buffer: Buffer,
  length: number,
  flags: number,
) => number
const accept4 = libc.func('int accept4(int fd, void *address, void *length, int flags)') as (
  fd: number,
  address: null,
  length: null,
  flags: number,
) => number
const socket = libc.func('int socket(int domain, int type, int protocol)') as (
  domain: number,
  type: number,
  protocol: number,
) => number
const connectRaw = libc.func('int connect(int fd, const uint8_t *address, uint32_t length)') as (
  fd: number,
  address: Uint8Array,
  length: number,
) => number
const spliceRaw = libc.func(
  'int64_t splice(int from, int64_t *fromOffset, int to, int64_t *toOffset, size_t length, unsigned int flags)',
) as (from: number, fromOffset: null, to: number, toOffset: null, length: number, flags: number) => number
const pipe2 = libc.func('int pipe2(_Out_ int *fds, int flags)') as (fds: number[], flags: number) => number
const fcntl = libc.func('int fcntl(int fd, int command, int value)') as (
  fd: number,
  command: number,
  value: number,
) => number
export const setsockopt = libc.func(
  'int setsockopt(int fd, int level, int name, const uint8_t *value, uint32_t length)',
) as (fd: number, level: number, name: number, value: Buffer, length: number) => number
export const getsockopt = libc.func(
  'int getsockopt(int fd, int level, int name, _Out_ uint8_t *value, uint32_t *length)',
) as (fd: number, level: number, name: number, value: Buffer, length: Uint32Array) => number
const eventfdRaw = libc.func('int eventfd(unsigned int value, int flags)') as (
  value: number,
  flags: number,
) => number
/** For pipes; for sockets there is recv. */
export const read = libc.func('int64_t read(int fd, _Out_ uint8_t *buffer, size_t length)') as (
  fd: number,
  buffer: Buffer,
  length: number,
) => number
const writeRaw = libc.func('int64_t write(int fd, const uint8_t *buffer, size_t length)') as (
  fd: number,
  buffer: Buffer,
  length: number,
) => number
const epollCreate = libc.func('int epoll_create1(int flags)') as (flags: number) => number
const epollCtl = libc.func('int epoll_ctl(int epoll, int operation, int fd, const uint8_t *event)') as (
  epoll: number,
  operation: number,
  fd: number,
  event: Buffer,
) => number
const epollWait = libc.func('int epoll_wait(int epoll, _Out_ uint8_t *events, int count, int timeoutMs)') as (
  epoll: number,
  events: Buffer,
  count: number,
  timeoutMs: number,
) => number

export const errno: () => number = koffi.errno
const { EINPROGRESS, ...errors } = koffi.os.errno as Record<
  'EAGAIN' | 'EINTR' | 'EINPROGRESS' | 'ECONNRESET' | 'ECONNREFUSED' | 'ETIMEDOUT' | 'EMFILE' | 'ENFILE',
  number
>
export const { EAGAIN, EINTR, ECONNRESET, ECONNREFUSED, ETIMEDOUT, EMFILE, ENFILE } = errors
export const SHUT_WR = 1

const O_NONBLOCK = 0o4000
const O_CLOEXEC = 0o2000000
const MSG_NOSIGNAL = 0x4000
const MSG_DONTWAIT = 0x40
/** More is to come at once: the kernel waits for it before it sends a packet that is not full. */
export const MSG_MORE = 0x8000
const SPLICE_F_MOVE = 1
const SPLICE_F_NONBLOCK = 2
const F_SETPIPE_SZ = 1031
export const SOL_SOCKET = 1
const SO_LINGER = 13
const AF_INET = 2
const SOCK_STREAM = 1
const EPOLL_CTL_ADD = 1
const EPOLL_CTL_DEL = 2
export const SO_KEEPALIVE = 9
export const IPPROTO_TCP = 6
export const TCP_NODELAY = 1
const TCP_QUICKACK = 12

const SO_ERROR = 4
const SOCK_FLAGS = O_NONBLOCK | O_CLOEXEC

/** Accepts a connection, non-blocking; -1 when there is none. */
export function accept(listeningFd: number): number {
  return accept4(listeningFd, null, null, SOCK_FLAGS)
}

const one = Buffer.alloc(4)
one.writeInt32LE(1)

const zero = Buffer.alloc(4)

/** Sends an acknowledgement that waits for something to go with. */
export function acknowledge(fd: number): void {
  setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, one, one.length)
}

/** Connections that are accepted from now on inherit what a proxy's need. */
export function setListening(fd: number): void {
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, one, one.length)
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, one, one.length)
}

/**
 * A connection under way to a sockaddr_in or sockaddr_in6; -1 when it fails at once. `lazily`: the last packet of the handshake
 * waits for what is sent first, and goes with it; where nothing is, `acknowledge` must send it.
 */
export function connectTo(address: Uint8Array, lazily = false): number {
  const fd = socket(address[0] ?? 0, SOCK_STREAM | SOCK_FLAGS, 0)
  if (fd < 0) return -1
  setListening(fd)
  if (lazily) setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, zero, zero.length)
  if (connectRaw(fd, address, address.length) === 0 || errno() === EINPROGRESS) return fd
  close(fd)
  return -1
}

/** Level and option of SO_ORIGINAL_DST by family; linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h. */
const originalDestinationOf = { 4: { level: 0, size: 16 }, 6: { level: 41, size: 28 } } as const
const SO_ORIGINAL_DST = 80
const optionLength = new Uint32Array(1)

/** Writes the address that a redirected connection was meant for; its size, or -1. */
export function originalAddress(fd: number, family: 4 | 6, into: Buffer): number {
  const { level, size } = originalDestinationOf[family]
  optionLength[0] = size
  return getsockopt(fd, level, SO_ORIGINAL_DST, into, optionLength) === 0 ? size : -1
}

/** Why a connection could not be made; reading it takes it away. */
export function socketError(fd: number): number {
  optionLength[0] = 4
  return getsockopt(fd, SOL_SOCKET, SO_ERROR, optionValue, optionLength) === 0
    ? optionValue.readInt32LE()
    : -1
}

const optionValue = Buffer.alloc(4)

/**
 * What is sent at once of bulk, in bytes: with the overhead of its records it fits into one packet of the kernel's (64 KiB
 * less headers, and less a segment of up to 9,000 bytes). A rest would be a packet of its own: it goes through the whole
 * network stack, wakes the receiver once more, and with BBR waits for a timer.
 */
export const packetBytes = 60 * 1024

export const sendFlags = MSG_NOSIGNAL | MSG_DONTWAIT
export const recvFlags = MSG_DONTWAIT

/** Moves bytes between a socket and a pipe inside the kernel. Returns their number, 0 at the end, -1 on failure. */
export function splice(from: number, to: number, length: number): number {
  return spliceRaw(from, null, to, null, length, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
}

export interface Pipe {
  read: number
  write: number
}

/** A pipe that holds up to `size` bytes, or what the kernel grants this user; undefined when there is none left. */
export function makePipe(size: number): Pipe | undefined {
  const fds = [-1, -1]
  if (pipe2(fds, O_NONBLOCK | O_CLOEXEC) !== 0) return undefined
  const [read = -1, write = -1] = fds
  fcntl(write, F_SETPIPE_SZ, size) // beyond the user's share of pipe pages it stays small, and works
  return { read, write }
}

/** Closes a socket so that its peer sees a reset. */
export function closeWithReset(fd: number): void {
  const linger = Buffer.alloc(8)
  linger.writeInt32LE(1, 0) // on, for 0 seconds
  setsockopt(fd, SOL_SOCKET, SO_LINGER, linger, linger.length)
  close(fd)
}

/** A TCP socket that is connected to nothing; -1 on failure. */
export function bareSocket(): number {
  return socket(AF_INET, SOCK_STREAM, 0)
}

/** A counter that one thread adds to and another waits for; -1 on failure. */
export function eventfd(): number {
  return eventfdRaw(0, O_NONBLOCK | O_CLOEXEC)
}

const counter = Buffer.alloc(8)

export function wake(fd: number): void {
  counter.writeBigUInt64LE(1n)
  writeRaw(fd, counter, 8)
}

export function drainWakes(fd: number): void {
  read(fd, counter, 8)
}

export const EPOLLIN = 0x1
export const EPOLLPRI = 0x2
export const EPOLLOUT = 0x4
export const EPOLLERR = 0x8
export const EPOLLHUP = 0x10
export const EPOLLRDHUP = 0x2000
const EPOLLET = 0x8000_0000

/** struct epoll_event is packed on x86-64 only. */
const dataOffset = arch() === 'x64' ? 4 : 8
const eventSize = dataOffset + 8
const maxEvents = 256

/** The descriptor of a new epoll set; -1 on failure. */
export function epoll(): number {
  return epollCreate(O_CLOEXEC)
}

/** An edge-triggered epoll set. */
export class Epoll {
  readonly #fd: number
  readonly #events = Buffer.alloc(maxEvents * eventSize)
  readonly #event = Buffer.alloc(eventSize)

  constructor(fd: number) {
    this.#fd = fd
  }

  /** False when the kernel refuses. */
  add(fd: number): boolean {
    this.#event.writeUInt32LE((EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET) >>> 0, 0)
    this.#event.writeInt32LE(fd, dataOffset)
    return epollCtl(this.#fd, EPOLL_CTL_ADD, fd, this.#event) === 0
  }

  /** To be called before the descriptor is closed: with a duplicate open elsewhere the kernel would keep it. */
  remove(fd: number): void {
    epollCtl(this.#fd, EPOLL_CTL_DEL, fd, this.#event)
  }

  wait(timeoutMs: number, onEvent: (fd: number, events: number) => void): void {
    const count = epollWait(this.#fd, this.#events, maxEvents, timeoutMs)
    for (let i = 0; i < count; i++) {
      const at = i * eventSize
      onEvent(this.#events.readInt32LE(at + dataOffset), this.#events.readUInt32LE(at))
    }
  }
}
