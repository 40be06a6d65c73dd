// Bulk streams whose readers are slow: node slow-readers.ts HOST PORT COUNT BYTES_PER_SECOND. Asks the server of
// conformance for endless bytes on each and reads so much of each in a second, until its standard input ends.
import { connect } from 'node:net'
import { answer, nextCommand } from './lines.ts'

const [host = '', port = '', count = '', rate = ''] = process.argv.slice(2)
const tickMs = 50
const perTick = (Number(rate) * tickMs) / 1_000
let total = 0
for (let i = 0; i < Number(count); i++) {
  const socket = connect({ host, port: Number(port), noDelay: true })
  socket.write('source 100000000000 7\n')
  let credit = 0
  socket.on('data', (chunk) => {
    total += chunk.length
    credit -= chunk.length
    if (credit <= 0) socket.pause()
  })
  socket.on('error', () => undefined)
  setInterval(() => {
    credit = Math.min(credit + perTick, perTick)
    if (credit > 0) socket.resume()
  }, tickMs)
}
while ((await nextCommand()) !== undefined) answer({ total })
process.exit(0)
