// One connection as an app makes it, with its times: `node measure.ts HOST PORT`. Prints {address, dnsMs, firstByteMs}.
import { lookup } from 'node:dns/promises'
import { connect } from 'node:net'

const [host = '', port = ''] = process.argv.slice(2)
const started = performance.now()
const { address } = await lookup(host, { family: 4 })
const dnsMs = performance.now() - started
const socket = connect({ host: address, port: Number(port) })
const { promise, resolve, reject } = Promise.withResolvers<number>()
socket.once('data', () => resolve(performance.now() - started))
socket.once('error', reject)
socket.once('close', () => reject(new Error('closed without a byte')))
const firstByteMs = await promise
socket.end()
console.log(JSON.stringify({ address, dnsMs, firstByteMs }))
process.exit(0)
