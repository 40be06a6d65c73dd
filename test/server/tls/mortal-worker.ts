// The server's worker for handshakes, which dies or stops answering when it is told to.
import { BroadcastChannel } from 'node:worker_threads'
import '../../../server/tls/worker.ts'

const orders = new BroadcastChannel('mortal-worker')
orders.onmessage = () => process.exit(1)
