"""Transfer of minibatches to a GPU: counts that stay on the device, and counts that are streamed; sizes of chunks.

May import `data.counts`.
"""
