// Queries SERVER:53 in turn as the app (uid 0) and as the sidecar (uid 1337) from the very same source ports:
// `node same-ports.ts SERVER ROUNDS`. Prints who answered whom, counted.
import { createSocket } from 'node:dgram'

const [server = '', rounds] = process.argv.slice(2)
const sourcePorts = Array.from({ length: 10 }, (_, i) => 20_000 + i)
const counts: Record<string, number> = {}

/** The owner match looks at the socket's owner, who is whoever made it. */
function ask(as: 'app' | 'sidecar', port: number): Promise<void> {
  process.seteuid?.(as === 'app' ? 0 : 1337)
  const socket = createSocket({ type: server.includes(':') ? 'udp6' : 'udp4', reuseAddr: true })
  const { promise, resolve } = Promise.withResolvers<string>()
  const timer = setTimeout(() => resolve('nobody'), 1_000)
  socket.on('message', (message) => resolve(String(message)))
  socket.on('error', (error) => resolve(error.message))
  socket.bind(port, () => {
    process.seteuid?.(0)
    socket.send('query', 53, server)
  })
  return promise.then((answer) => {
    clearTimeout(timer)
    counts[`${as} by ${answer}`] = (counts[`${as} by ${answer}`] ?? 0) + 1
    return new Promise((closed) => socket.close(() => closed()))
  })
}

for (let round = 0; round < Number(rounds); round++) {
  for (const port of sourcePorts) {
    await ask('app', port)
    await ask('sidecar', port)
  }
}
console.log(JSON.stringify(counts))
process.exit(0)
