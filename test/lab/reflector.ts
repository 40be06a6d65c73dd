// Tells each connection the address that it comes from: `node reflector.ts PORT`.
import { createServer } from 'node:net'

const server = createServer((socket) => {
  socket.on('error', () => socket.destroy())
  socket.write(`${socket.remoteAddress?.replace('::ffff:', '')}:${socket.remotePort}`)
})
server.listen(Number(process.argv[2]), () => console.log('listening'))
