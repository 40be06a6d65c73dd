// The DNS server of the lab's internet: `node internet-dns.ts ADDRESS`. Knows internet.test, and nothing else.
import { createSocket } from 'node:dgram'
import { type Answer, AUTHORITATIVE_ANSWER, decode, encode } from 'dns-packet'

const [address] = process.argv.slice(2)
const socket = createSocket('udp4')

socket.on('message', (message, from) => {
  const { id, questions = [] } = decode(message)
  const known = questions[0]?.name.toLowerCase() === 'internet.test'
  const a: Answer = { type: 'A', name: 'internet.test', class: 'IN', ttl: 60, data: '203.0.113.80' }
  const answers = known && questions[0]?.type === 'A' ? [a] : []
  const flags = AUTHORITATIVE_ANSWER | (known ? 0 : 3)
  socket.send(encode({ type: 'response', id: id ?? 0, flags, questions, answers }), from.port, from.address)
})
socket.bind(53, address, () => console.log('listening'))
