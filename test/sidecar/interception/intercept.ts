// Stands where the interceptor stands: prints the original destination of each connection that arrives on 40001, and
// asked for "arrivals" also the address that it arrives at and the port that it comes from. It ends first.
import { createServer } from 'node:net'
import { loopbackSocket } from '../../../sidecar/interception/loopback.ts'
import { originalDestination } from '../../../sidecar/interception/original-destination.ts'
import { descriptorOf } from '../../../sidecar/shared/descriptor.ts'

let listening = 0
for (const host of ['127.0.0.1', '::1']) {
  const server = createServer((socket) => {
    socket.on('error', () => undefined)
    try {
      const { address, port } = originalDestination(descriptorOf(socket), host === '::1' ? 6 : 4)
      const arrival = process.argv[2] === 'arrivals' ? ` ${socket.localAddress} ${socket.remotePort}` : ''
      console.log(`${address} ${port}${arrival}`)
    } catch (error) {
      console.log(String(error))
    }
    socket.end()
  })
  const fd = host === '127.0.0.1' ? loopbackSocket(40_001) : -1
  server.listen(fd < 0 ? { host, port: 40_001 } : { fd }, () => {
    listening++
    if (listening === 2) console.log('ready')
  })
}
process.once('SIGTERM', () => process.exit(0))
