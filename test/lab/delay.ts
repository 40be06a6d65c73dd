// Delays every packet that crosses the lab's internet, and loses some of them: `node delay.ts MS FRACTION SEED`, in
// the namespace that has tun0.
// There is no netem on the machines we test on. One thread, in order, with a bounded queue. It shares the cores with what is
// measured, so it is made cheap: packets stay as large as the kernel's (up to 64 KiB of a TCP stream, as on the other links
// of the lab) unless some are to be lost, and are held where they were read to.
import { constants, openSync } from 'node:fs'
import koffi from 'koffi'
import { Seeded } from '../server/seeded.ts'

const [delayMs = 0, loss = 0, seed = 1] = process.argv.slice(2).map(Number)
const random = new Seeded(seed)
const queueBytes = 64 * 1024 * 1024
/** With the header that says how a packet was put together. */
const maxPacket = 65_536 + 10
const tunSetInterface = 0x400454ca // TUNSETIFF
const tunSetOffload = 0x400454d0 // TUNSETOFFLOAD
const keepsWhole = loss === 0
// IFF_TUN | IFF_NO_PI: bare IP packets; IFF_VNET_HDR: with that header
const flags = 0x0001 | 0x1000 | (keepsWhole ? 0x4000 : 0)
const offloads = 0x1 | 0x2 | 0x4 // TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
const pollIn = 1

const libc = koffi.load(null)
const ioctl = libc.func('int ioctl(int fd, unsigned long request, _Inout_ uint8_t *argument)')
const setting = libc.func('int ioctl(int fd, unsigned long request, unsigned long value)')
const read = libc.func('int64_t read(int fd, _Out_ uint8_t *buffer, uint64_t count)')
const write = libc.func('int64_t write(int fd, const uint8_t *buffer, uint64_t count)')
const poll = libc.func('int poll(_Inout_ uint8_t *fds, unsigned long count, int timeout)')

const fd = openSync('/dev/net/tun', constants.O_RDWR | constants.O_NONBLOCK)
const request = Buffer.alloc(40)
request.write('tun0')
request.writeUInt16LE(flags, 16)
if (ioctl(fd, tunSetInterface, request) !== 0)
  throw new Error(`cannot attach to tun0: errno ${koffi.errno()}`)

if (setting(fd, tunSetOffload, keepsWhole ? offloads : 0) !== 0)
  throw new Error(`cannot say whether packets stay whole: errno ${koffi.errno()}`)

interface Held {
  dueMs: number
  packet: Buffer
  /** What it takes of the memory, with what was left out before it. */
  size: number
}

/** What waits is here, one behind the other and round again. */
const memory = Buffer.allocUnsafeSlow(queueBytes)
let head = 0
let queuedBytes = 0
/** At the memory's end, where no whole packet would fit. */
let leftOut = 0
let queue: Held[] = []
let first = 0
const dropped = Buffer.allocUnsafe(maxPacket)
const pollRequest = Buffer.alloc(8)

/** Where the next packet may be read to; undefined where there is no room. */
function room(): Buffer | undefined {
  if (head + maxPacket > queueBytes) {
    leftOut = queueBytes - head
    queuedBytes += leftOut
    head = 0
  }
  return queuedBytes + maxPacket > queueBytes ? undefined : memory.subarray(head, head + maxPacket)
}

function takeIn(): void {
  for (let i = 0; i < 1_000; i++) {
    const into = room()
    const length = Number(read(fd, into ?? dropped, maxPacket))
    if (length <= 0) return
    if (into === undefined) continue // a full router drops
    if (loss > 0 && random.below(1_000_000) < loss * 1_000_000) continue
    // Not earlier: what comes while others are taken in would be too soon.
    const dueMs = performance.now() + delayMs
    queue.push({ dueMs, packet: into.subarray(0, length), size: leftOut + length })
    leftOut = 0
    queuedBytes += length
    head += length
  }
}

function letOut(): void {
  const now = performance.now()
  for (let held = queue[first]; held !== undefined && held.dueMs <= now; held = queue[first]) {
    write(fd, held.packet, held.packet.length)
    queuedBytes -= held.size
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
