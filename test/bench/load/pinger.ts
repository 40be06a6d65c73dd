// Small requests on connections that stay, one at a time, for some seconds: node pinger.ts HOST PORT SECONDS.
// Prints the times of the answers as one JSON value, in ms. The server greets first, and an answer is one line.
import { on } from 'node:events'
import { connect } from 'node:net'
import { createInterface } from 'node:readline'

const [host = '', port = '', seconds = ''] = process.argv.slice(2)
const socket = connect({ host, port: Number(port), noDelay: true })
const heard = on(createInterface(socket), 'line')
await heard.next() // or an answer would be taken for that to the request before
const times: number[] = []
for (const until = performance.now() + Number(seconds) * 1_000; performance.now() < until; ) {
  const start = performance.now()
  socket.write('ping\n')
  await heard.next()
  times.push(performance.now() - start)
  await new Promise((resolve) => setTimeout(resolve, 10))
}
process.stdout.write(`${JSON.stringify(times)}\n`)
process.exit(0)
