// Small requests on connections that stay, one at a time, for some seconds: node pinger.ts HOST PORT SECONDS.
// Prints the times of the answers as one JSON value, in ms.
import { once } from 'node:events'
import { connect } from 'node:net'

const [host = '', port = '', seconds = ''] = process.argv.slice(2)
const socket = connect({ host, port: Number(port), noDelay: true })
await once(socket, 'connect')
const times: number[] = []
for (const until = performance.now() + Number(seconds) * 1_000; performance.now() < until; ) {
  const start = performance.now()
  socket.write('ping\n')
  await once(socket, 'data')
  times.push(performance.now() - start)
  await new Promise((resolve) => setTimeout(resolve, 10))
}
process.stdout.write(`${JSON.stringify(times)}\n`)
process.exit(0)
