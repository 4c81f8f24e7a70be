use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

/// Counts the writes that reach it.
struct Counting {
    stream: DuplexStream,
    writes: Arc<Mutex<Vec<usize>>>,
}

impl AsyncWrite for Counting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let len = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.writes.lock().unwrap().push(len);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The bytes that arrive, and the sizes of the writes, when a connection writes these pieces and flushes each.
async fn written(pieces: &[Vec<u8>], room: usize) -> (Vec<u8>, Vec<usize>) {
    let (stream, mut peer) = duplex(room);
    let writes = Arc::new(Mutex::new(Vec::new()));
    let counting = Counting {
        stream,
        writes: Arc::clone(&writes),
    };
    let wire = Wire::new(counting, PEER);
    let mut io = wire.clone();
    let connection = async move {
        for piece in pieces {
            io.write_all(piece).await?;
            io.flush().await?;
        }
        // As a connection does that waits for requests.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        io.shutdown().await
    };
    let mut arrived = Vec::new();
    let (driven, read) = tokio::join!(wire.drive(connection), peer.read_to_end(&mut arrived));
    driven.unwrap();
    read.unwrap();
    let writes = writes.lock().unwrap().clone();
    (arrived, writes)
}

#[tokio::test]
async fn small_writes_go_out_together() {
    let pieces = vec![vec![1; 100]; 20];
    let (arrived, writes) = written(&pieces, 1 << 20).await;
    assert_eq!(arrived, pieces.concat());
    assert_eq!(writes, [2000]);
}

#[tokio::test]
async fn frames_go_out_a_few_at_a_time() {
    let pieces = vec![vec![1; 16 * 1024]; 16];
    let (arrived, writes) = written(&pieces, 1 << 20).await;
    assert_eq!(arrived, pieces.concat());
    assert_eq!(writes, [4 * 16 * 1024; 4]);
}

#[tokio::test]
async fn a_peer_that_takes_little_at_a_time_gets_everything_in_order() {
    let pieces: Vec<_> = (0_u8..50).map(|byte| vec![byte; 7000]).collect();
    let (arrived, _) = written(&pieces, 1000).await;
    assert!(arrived == pieces.concat());
}

#[tokio::test]
async fn a_large_write_is_not_copied() {
    let pieces = vec![vec![1; 10], vec![2; 2 * ENOUGH], vec![3; 10]];
    let (arrived, writes) = written(&pieces, 1 << 20).await;
    assert!(arrived == pieces.concat());
    assert_eq!(writes, [10, 2 * ENOUGH, 10]);
}

#[tokio::test]
async fn the_preface_is_read_again_and_an_answer_goes_out_before_the_next_read() {
    let (stream, mut peer) = duplex(1 << 20);
    let wire = Wire::new(stream, PEER);
    let mut io = wire.clone();
    let connection = async move {
        let mut preface = [0; PREFACE.len()];
        io.read_exact(&mut preface).await?;
        io.write_all(b"question").await?;
        let mut answer = [0; 6];
        io.read_exact(&mut answer).await?;
        Ok::<_, io::Error>((preface, answer))
    };
    let client = async {
        let mut question = [0; 8];
        peer.read_exact(&mut question).await.unwrap();
        peer.write_all(b"answer").await.unwrap();
    };
    let (read, ()) = tokio::join!(wire.drive(connection), client);
    assert_eq!(read.unwrap(), (*PREFACE, *b"answer"));
}

#[tokio::test]
async fn reading_pauses_when_many_calls_begin() {
    const HEADERS: u8 = 1;
    let (stream, mut client) = duplex(1 << 20);
    for _ in 0..400 {
        let frame = [0, 0, 200, HEADERS, 0, 0, 0, 0, 1];
        client.write_all(&frame).await.unwrap();
        client.write_all(&[0; 200]).await.unwrap();
    }
    drop(client);
    let wire = Wire::new(stream, PEER);
    let mut io = wire.clone();
    io.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
    let mut reads = vec![0];
    let mut buffer = [0; 1024];
    let turns = poll_fn(|cx| {
        // As the HTTP/2 layer does, which reads again after each call that it hands over.
        for _ in 0..100 {
            let mut buffer = ReadBuf::new(&mut buffer);
            match Pin::new(&mut io).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    return Poll::Ready(Ok::<_, io::Error>(()));
                }
                Poll::Ready(read) => *reads.last_mut().unwrap() += read.map_or(0, |()| 1),
                Poll::Pending => {}
            }
        }
        reads.push(0);
        Poll::Pending
    });
    wire.drive(turns).await.unwrap();
    assert_eq!(reads, [17, 17, 17, 17, 14]);
}
