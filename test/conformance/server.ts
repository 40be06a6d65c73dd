// The server of the conformance suite: `node server.ts HOST PORT`. Prints one JSON line for each ended connection.
import { createServer, type Socket } from 'node:net'
import { readLine, receiveAll, sendSeeded } from './traffic.ts'

const [host, port] = process.argv.slice(2)

async function serve(socket: Socket): Promise<object> {
  const [mode, amount, seed] = (await readLine(socket)).split(' ')
  if (mode === 'echo') {
    socket.pipe(socket)
    return receiveAll(socket)
  }
  if (mode === 'sink') {
    const received = await receiveAll(socket)
    socket.end(`${received.bytes} ${received.sha256}\n`)
    return received
  }
  if (mode === 'source') {
    const sha256 = await sendSeeded(socket, Number(amount), Number(seed))
    socket.end()
    return { sent: sha256, ...(await receiveAll(socket)) }
  }
  if (mode === 'duplex') {
    const [received] = await Promise.all([
      receiveAll(socket),
      sendSeeded(socket, Number(amount), Number(seed)).catch(() => undefined), // received.by says why
    ])
    socket.end(`${received.bytes} ${received.sha256}\n`)
    return received
  }
  if (mode === 'break') {
    await sendSeeded(socket, Number(amount), Number(seed)).catch(() => undefined)
    socket.resetAndDestroy()
    return {}
  }
  if (mode === 'fin-first') {
    socket.end('bye')
    return receiveAll(socket)
  }
  if (mode === 'reset') {
    const { promise, resolve } = Promise.withResolvers<void>()
    socket.write(Buffer.alloc(Number(amount), 'r'), () => resolve())
    await promise
    await readLine(socket) // the client has seen the bytes: a reset may overtake data, as in plain TCP
    socket.resetAndDestroy()
    return {}
  }
  if (mode === 'await-reset') {
    let bytes = 0
    socket.on('data', (chunk) => {
      bytes += chunk.length
      if (bytes === Number(amount)) socket.write('got\n')
    })
    return receiveAll(socket)
  }
  if (mode === 'slow') {
    socket.pause()
    return {}
  }
  socket.destroy()
  return { unknown: mode }
}

const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
  socket.on('error', () => undefined)
  serve(socket).then(
    (result) => console.log(JSON.stringify(result)),
    (error) => {
      // A client that has called two addresses at once, as Node does after 250 ms, leaves one of them without a word.
      socket.destroy()
      console.log(JSON.stringify({ error: String(error) }))
    },
  )
})
server.listen(Number(port), host, 4_096, () => console.log(JSON.stringify({ listening: port })))
