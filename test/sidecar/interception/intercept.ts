// Stands where the interceptor stands: prints the original destination of each connection that arrives on 40001.
import { createServer } from 'node:net'
import { originalDestination } from '../../../sidecar/interception/original-destination.ts'
import { descriptorOf } from '../../../sidecar/shared/descriptor.ts'

let listening = 0
for (const host of ['127.0.0.1', '::1']) {
  const server = createServer((socket) => {
    socket.on('error', () => undefined)
    try {
      const { address, port } = originalDestination(descriptorOf(socket), host === '::1' ? 6 : 4)
      console.log(`${address} ${port}`)
    } catch (error) {
      console.log(String(error))
    }
    socket.end()
  })
  server.listen(40_001, host, () => {
    listening++
    if (listening === 2) console.log('ready')
  })
}
process.once('SIGTERM', () => process.exit(0))
