// Connects from the same source port to one `ADDRESS PORT` after the other: node one-port.ts SOURCE_PORT ADDRESS PORT...
// Waits for each to be ended by the other side, so that this one has nothing left in TIME_WAIT.
import { connect } from 'node:net'

const [localPort = '', ...places] = process.argv.slice(2)
for (let i = 0; i < places.length; i += 2) {
  const [host = '', port = ''] = places.slice(i)
  const socket = connect({ host, port: Number(port), localPort: Number(localPort) })
  socket.resume()
  socket.setTimeout(500, () => socket.destroy(new Error('no answer')))
  const { promise, resolve } = Promise.withResolvers<void>()
  socket.once('error', (error) => {
    console.log(`${host} ${error.message}`)
    resolve()
  })
  socket.once('close', resolve)
  await promise
}
process.exit(0)
