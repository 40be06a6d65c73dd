// The lab's TCP echo: `node echo-server.ts PORT POD NODE`. Greets, then sends back what comes, and the FIN last.
import { createServer } from 'node:net'

const [port, pod, node] = process.argv.slice(2)

const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
  socket.on('error', () => socket.destroy())
  socket.write(`Welcome, you are connected to pod ${pod} on node ${node}\r\n`)
  socket.pipe(socket)
})
server.listen(Number(port), () => console.log(`echo on port ${port}`))
