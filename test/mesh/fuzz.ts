// Sends 10,000 seeded random inputs, and every truncation of a TLS ClientHello and of an HTTP/2 preface, to
// `HOST PORT`: each on a connection of its own, 64 at a time. Prints how many; fails when one is never ended.
import { connect } from 'node:net'
import { PassThrough } from 'node:stream'
import { connect as tlsConnect } from 'node:tls'
import { Seeded } from '../server/seeded.ts'

const [host = '', port = ''] = process.argv.slice(2)
const random = new Seeded(1_337)

function clientHello(): Buffer {
  const wire = new PassThrough()
  const socket = tlsConnect({ socket: wire, servername: 'fuzz.test', ALPNProtocols: ['h2'] })
  socket.on('error', () => undefined)
  return wire.read() ?? Buffer.from([0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3])
}

const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0', 'latin1')
const truncations = [clientHello(), preface, Buffer.from('GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n')].flatMap(
  (whole) => Array.from({ length: whole.length }, (_, i) => whole.subarray(0, i)),
)
const randoms = Array.from({ length: 10_000 }, (_, i) => {
  const bytes = random.bytes(1 + random.below(300))
  if (i % 3 === 0) bytes[0] = 0x16 // some look like TLS for a while
  return bytes
})
const inputs = [...randoms, ...truncations]

function send(input: Buffer): Promise<void> {
  const socket = connect({ host, port: Number(port) })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const timer = setTimeout(() => reject(new Error(`never ended: ${input.toString('hex')}`)), 30_000)
  socket.on('error', () => undefined)
  socket.on('data', () => undefined)
  socket.once('close', () => {
    clearTimeout(timer)
    resolve()
  })
  // A quarter goes away without a word, the others end properly.
  if (random.below(4) === 0) socket.write(input, () => socket.resetAndDestroy())
  else socket.end(input)
  return promise
}

let next = 0
async function worker(): Promise<void> {
  for (let input = inputs[next]; input !== undefined; input = inputs[next]) {
    next++
    await send(input)
  }
}
await Promise.all(Array.from({ length: 64 }, worker))
console.log(JSON.stringify({ inputs: inputs.length }))
process.exit(0)
