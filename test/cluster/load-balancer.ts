// `node load-balancer.ts LISTEN_HOST LISTEN_PORT TARGET_HOST TARGET_PORT`: what a cloud's load balancer does, for a
// Service of type LoadBalancer: takes connections at a public address and hands them to the node port.
import { connect, createServer } from 'node:net'
import { pipeline } from 'node:stream'

const [listenHost = '', listenPort, host = '', port] = process.argv.slice(2)

const server = createServer({ allowHalfOpen: true }, (socket) => {
  const target = connect({ host, port: Number(port), allowHalfOpen: true })
  pipeline(socket, target, () => undefined)
  pipeline(target, socket, () => undefined)
})
server.listen(Number(listenPort), listenHost, () => console.log('listening'))
