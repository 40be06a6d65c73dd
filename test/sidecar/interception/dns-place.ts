// Answers each UDP datagram with its name: `node dns-place.ts NAME ADDRESS PORT [ADDRESS PORT]`.
import { createSocket } from 'node:dgram'

const [name, ...places] = process.argv.slice(2)
for (let i = 0; i < places.length; i += 2) {
  const address = places[i] ?? ''
  const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4')
  socket.on('message', (_message, from) => socket.send(`${name}`, from.port, from.address))
  socket.bind(Number(places[i + 1]), address, () => {
    if (i + 2 >= places.length) console.log('ready')
  })
}
process.once('SIGTERM', () => process.exit(0))
