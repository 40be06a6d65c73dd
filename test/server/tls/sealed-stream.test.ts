import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { RecordOpener, RecordSealer } from '../../../server/tls/records.ts'
import { SealedStream } from '../../../server/tls/sealed-stream.ts'
import { contentTypes, trafficKeyOf } from '../../../sidecar/shared/tls13/record.ts'

const { alert, applicationData } = contentTypes
const handshake = 22
const closeNotify = Buffer.from([1, 0])
const keys = { read: trafficKeyOf(randomBytes(32)), write: trafficKeyOf(randomBytes(32)) }

let peer: Socket
let own: Socket
let sealer: RecordSealer
let got: Buffer[]
const sealed = (plain: string | Uint8Array | number[], type: number = applicationData) =>
  sealer.seal(typeof plain === 'string' ? Buffer.from(plain) : Uint8Array.from(plain), type)

beforeEach(async () => {
  const server = createServer()
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const address = server.address()
  if (typeof address !== 'object' || address === null) throw new Error('the server does not listen')
  peer = connect(address.port, '127.0.0.1')
  peer.on('error', () => peer.destroy())
  own = ((await once(server, 'connection')) as [Socket])[0].pause()
  server.close()
  sealer = new RecordSealer(keys.read)
  got = []
})
afterEach(() => {
  peer.destroy()
  own.destroy()
})

/** Our end, which is read; `ended` tells how it ended. */
function read(early: Uint8Array = Buffer.alloc(0)): { stream: SealedStream; ended: Promise<string> } {
  const stream = new SealedStream(own, keys, Buffer.from(early))
  let how = 'without an end'
  stream.on('data', (bytes) => got.push(bytes))
  stream.on('end', () => {
    how = 'at its end'
  })
  stream.on('error', (error) => {
    how = error.message
  })
  const closed = Promise.withResolvers<string>()
  stream.once('close', () => closed.resolve(how))
  return { stream, ended: closed.promise }
}

const text = () => String(Buffer.concat(got))

describe('a stream ends at its end', () => {
  it('when the peer says so, and says the same', async () => {
    const { ended } = read()
    const answer: Buffer[] = []
    peer.on('data', (bytes) => answer.push(bytes))
    peer.write(Buffer.concat([sealed('all'), sealed(closeNotify, alert)]))
    expect(await ended).toBe('at its end')
    if (!peer.closed) await once(peer, 'close')
    expect(text()).toBe('all')
    const records = new RecordOpener(keys.write).open(Buffer.concat(answer))
    expect(records).toEqual([{ type: alert, plain: closeNotify }])
  })

  it('when the peer ends without a word', async () => {
    const { ended } = read()
    peer.end(sealed('all'))
    expect(await ended).toBe('at its end')
    expect(text()).toBe('all')
  })

  it('without what is only the beginning of a record', async () => {
    const { ended } = read()
    const whole = sealed('whole')
    peer.end(Buffer.concat([whole, sealed('cut off').subarray(0, -1)]))
    expect(await ended).toBe('at its end')
    expect(text()).toBe('whole')
  })

  it('when we end it: the peer is told, after all that we wrote', async () => {
    const { stream, ended } = read()
    const answer: Buffer[] = []
    peer.on('data', (bytes) => answer.push(bytes))
    stream.write('last')
    stream.end('words')
    await once(peer, 'close')
    await ended
    const records = new RecordOpener(keys.write).open(Buffer.concat(answer))
    expect(records.at(-1)).toEqual({ type: alert, plain: closeNotify })
    expect(String(Buffer.concat(records.slice(0, -1).map(({ plain }) => plain)))).toBe('lastwords')
  })
})

describe('a stream is destroyed, and nothing more is read,', () => {
  const header = (type: number, length: number) => Buffer.from([type, 3, 3, length >> 8, length & 255])
  const notOurs = 'its header is not one of TLS 1.3'
  it.each<[string, () => Buffer, string]>([
    ['a record that is longer than TLS allows', () => header(applicationData, 16_641), notOurs],
    ['a record too short for a tag', () => Buffer.concat([header(23, 16), Buffer.alloc(16)]), notOurs],
    ['a record in the clear', () => Buffer.concat([header(alert, 2), closeNotify]), notOurs],
    ['a change of the cipher', () => Buffer.concat([header(20, 1), Buffer.from([1])]), notOurs],
    ['a record of nobody', () => Buffer.concat([header(23, 40), randomBytes(40)]), 'not made by the peer'],
    ['a record again', () => replayed(), 'not made by the peer'],
    ['an alert', () => sealed([2, 40], alert), 'type 21'],
    ['a warning', () => sealed([1, 90], alert), 'type 21'],
    ['half an alert', () => sealed([1], alert), 'type 21'],
    ['an empty alert', () => sealed([], alert), 'type 21'],
    ['two alerts in one record', () => sealed([1, 0, 1, 0], alert), 'type 21'],
    ['a key update', () => sealed([24, 0, 0, 1, 1], handshake), 'type 22'],
    ['a session ticket', () => sealed([4, 0, 0, 1, 0], handshake), 'type 22'],
    ['a certificate', () => sealed([11, 0, 0, 4, 0, 0, 0, 0], handshake), 'type 22'],
    ['an empty handshake message', () => sealed([], handshake), 'type 22'],
    ['many empty records', () => Buffer.concat(Array.from({ length: 33 }, () => sealed(''))), 'were empty'],
  ])('at %s', async (_what, make, why) => {
    const { stream, ended } = read()
    peer.write(sealed('good'))
    await once(stream, 'data')
    peer.write(make())
    peer.write(sealed('late'))
    expect(await ended).toContain(why)
    expect(text()).toBe('good')
    expect(own.destroyed).toBe(true)
  })

  function replayed(): Buffer {
    const record = sealed('again')
    return Buffer.concat([record, record])
  }

  it('at what came with the end of the handshake, too', async () => {
    expect(await read(header(20, 1)).ended).toContain(notOurs)
  })

  it('and a write after it fails', async () => {
    const { stream, ended } = read(header(20, 1))
    await ended
    const failed = Promise.withResolvers<Error | null | undefined>()
    stream.write('too late', failed.resolve)
    expect(await failed.promise).toBeInstanceOf(Error)
  })
})

it('a stream that nobody reads holds its peer up', async () => {
  const stream = new SealedStream(own, keys, Buffer.alloc(0))
  peer.write(sealed(Buffer.alloc(8 * 1024 * 1024)))
  await once(stream, 'readable')
  await expect.poll(() => own.isPaused(), { interval: 1 }).toBe(true)
  expect(stream.readableLength).toBeLessThan(1024 * 1024)
  let bytes = 0
  stream.on('data', (chunk) => {
    bytes += chunk.length
    if (bytes === 8 * 1024 * 1024) stream.destroy()
  })
  await once(stream, 'close')
  expect(bytes).toBe(8 * 1024 * 1024)
})
