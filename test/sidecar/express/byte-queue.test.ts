import { describe, expect, it } from 'vitest'
import { ByteQueue } from '../../../sidecar/express/byte-queue.ts'
import { Seeded } from '../../server/seeded.ts'

/** Takes so many bytes out, head by head. */
function take(queue: ByteQueue, count: number): Buffer {
  const taken: Buffer[] = []
  for (let left = Math.min(count, queue.length); left > 0; ) {
    const head = queue.head().subarray(0, left)
    taken.push(Buffer.from(head))
    queue.drop(head.length)
    left -= head.length
  }
  return Buffer.concat(taken)
}

describe('a queue of bytes', () => {
  it('has nothing at first, and nothing again when all was taken', () => {
    const queue = new ByteQueue()
    expect([queue.length, queue.head().length]).toEqual([0, 0])
    queue.push(Buffer.alloc(0))
    expect([queue.length, queue.head().length]).toEqual([0, 0])
    queue.push(Buffer.from('abc'))
    queue.drop(3)
    expect([queue.length, queue.head().length]).toEqual([0, 0])
  })

  it('keeps a copy', () => {
    const queue = new ByteQueue()
    const bytes = Buffer.from('abc')
    queue.push(bytes)
    bytes.fill('x')
    expect(queue.head().toString()).toBe('abc')
  })

  it.each([1, 1_023, 1_024, 1_025, 16_384, 17_408, 17_409, 65_528])(
    'gives back %d bytes that came one by one, and those that came at once',
    (length) => {
      const bytes = new Seeded(length).bytes(length)
      const [single, whole] = [new ByteQueue(), new ByteQueue()]
      for (const byte of bytes) single.push(Buffer.from([byte]))
      whole.push(bytes)
      expect(whole.head().length).toBe(Math.min(length, 16_384))
      for (const queue of [single, whole]) expect(take(queue, length).equals(bytes)).toBe(true)
    },
  )

  it('is in order whatever is put in and taken out, and how much of it', () => {
    const random = new Seeded(20_261_125)
    const queue = new ByteQueue()
    let waiting = Buffer.alloc(0)
    for (let i = 0; i < 5_000; i++) {
      const bytes = random.bytes(random.below(random.pick([3, 300, 30_000])))
      queue.push(bytes)
      waiting = Buffer.concat([waiting, bytes])
      const count = random.below(random.pick([3, 1_000, 60_000]))
      expect(take(queue, count).equals(waiting.subarray(0, count))).toBe(true)
      waiting = waiting.subarray(count)
      expect(queue.length).toBe(waiting.length)
    }
    expect(take(queue, queue.length).equals(waiting)).toBe(true)
  })
})
