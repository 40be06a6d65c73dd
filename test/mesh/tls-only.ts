// What some networks do: `node tls-only.ts PORT HOST HOST_PORT` lets TLS through to the host, and resets all else.
import { connect, createServer } from 'node:net'

const [port, host, hostPort] = process.argv.slice(2)
const tlsHandshake = 0x16

const server = createServer({ allowHalfOpen: true }, (client) => {
  client.on('error', () => client.destroy())
  client.once('data', (bytes) => {
    if (bytes[0] !== tlsHandshake) {
      console.log('refused')
      client.resetAndDestroy()
      return
    }
    const onward = connect({ host: String(host), port: Number(hostPort), allowHalfOpen: true })
    onward.on('error', () => client.destroy())
    onward.once('close', () => client.destroy())
    client.once('close', () => onward.destroy())
    onward.write(bytes)
    client.pipe(onward).pipe(client)
  })
})
server.listen(Number(port), () => console.log('listening'))
