// Delays every packet that crosses the lab's internet, and loses some of them: `node delay.ts MS FRACTION SEED`, in
// the namespace that has tun0.
// There is no netem on the machines we test on. One thread, in order, with a bounded queue.
import { constants, openSync } from 'node:fs'
import koffi from 'koffi'
import { Seeded } from '../server/seeded.ts'

const [delayMs = 0, loss = 0, seed = 1] = process.argv.slice(2).map(Number)
const random = new Seeded(seed)
const maxQueuedBytes = 64 * 1024 * 1024
const maxPacket = 65_536
const tunSetInterface = 0x400454ca // TUNSETIFF
const flags = 0x0001 | 0x1000 // IFF_TUN | IFF_NO_PI: bare IP packets
const pollIn = 1

const libc = koffi.load(null)
const ioctl = libc.func('int ioctl(int fd, unsigned long request, _Inout_ uint8_t *argument)')
const read = libc.func('int64_t read(int fd, _Out_ uint8_t *buffer, uint64_t count)')
const write = libc.func('int64_t write(int fd, const uint8_t *buffer, uint64_t count)')
const poll = libc.func('int poll(_Inout_ uint8_t *fds, unsigned long count, int timeout)')

const fd = openSync('/dev/net/tun', constants.O_RDWR | constants.O_NONBLOCK)
const request = Buffer.alloc(40)
request.write('tun0')
request.writeUInt16LE(flags, 16)
if (ioctl(fd, tunSetInterface, request) !== 0)
  throw new Error(`cannot attach to tun0: errno ${koffi.errno()}`)

interface Held {
  dueMs: number
  packet: Buffer
}

let queue: Held[] = []
let first = 0
let queuedBytes = 0
const buffer = Buffer.allocUnsafe(maxPacket)
const pollRequest = Buffer.alloc(8)

function takeIn(): void {
  const dueMs = performance.now() + delayMs
  for (let i = 0; i < 1_000; i++) {
    const length = Number(read(fd, buffer, maxPacket))
    if (length <= 0) return
    if (loss > 0 && random.below(1_000_000) < loss * 1_000_000) continue
    if (queuedBytes + length > maxQueuedBytes) continue // a full router drops
    queue.push({ dueMs, packet: Buffer.from(buffer.subarray(0, length)) })
    queuedBytes += length
  }
}

function letOut(): void {
  const now = performance.now()
  for (let held = queue[first]; held !== undefined && held.dueMs <= now; held = queue[first]) {
    write(fd, held.packet, held.packet.length)
    queuedBytes -= held.packet.length
    first++
  }
  if (first > 4_096) {
    queue = queue.slice(first)
    first = 0
  }
}

console.log('delaying')
for (;;) {
  takeIn()
  letOut()
  const next = queue[first]
  const waitMs = next === undefined ? 1_000 : Math.max(0, Math.ceil(next.dueMs - performance.now()))
  pollRequest.writeInt32LE(fd, 0)
  pollRequest.writeInt16LE(pollIn, 4)
  poll(pollRequest, 1, waitMs)
}
