// Connects to each `ADDRESS PORT`: prints the outcome of each.
import { connect } from 'node:net'

const places = process.argv.slice(2)
for (let i = 0; i < places.length; i += 2) {
  const socket = connect({ host: places[i] ?? '', port: Number(places[i + 1]) })
  const { promise, resolve } = Promise.withResolvers<string>()
  socket.setTimeout(500, () => resolve('no answer'))
  socket.once('connect', () => resolve('connected'))
  socket.once('error', (error) => resolve('code' in error ? String(error.code) : String(error)))
  console.log(`${places[i]} ${await promise}`)
  socket.destroy()
}
process.exit(0)
